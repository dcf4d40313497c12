"""Launch files compile and have their arguments. PyPI has no launch; docs/ros2-packaging.md says what it ran."""

from __future__ import annotations

import ast
import py_compile
from pathlib import Path

import pytest

from bridge import config

REPOSITORY = Path(__file__).parents[1]
FILES = sorted((REPOSITORY / "launch").glob("*.py"))
# Only what Jazzy's launch and launch_ros have; a name that they lack would be seen on a robot alone.
KNOWN = {
    "launch": {"LaunchDescription"},
    "launch.actions": {
        "DeclareLaunchArgument",
        "ExecuteProcess",
        "GroupAction",
        "IncludeLaunchDescription",
        "SetEnvironmentVariable",
        "UnsetEnvironmentVariable",
    },
    "launch.conditions": {"IfCondition"},
    "launch.launch_description_sources": {"PythonLaunchDescriptionSource"},
    "launch.substitutions": {"LaunchConfiguration", "NotEqualsSubstitution"},
    "launch_ros.actions": {"Node", "PushRosNamespace"},
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def calls(module: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def first_strings(found: list[ast.Call]) -> list[str]:
    return [argument.value for call in found if isinstance(argument := call.args[0], ast.Constant)]


def keyword(call: ast.Call, name: str) -> ast.expr:
    return next(each.value for each in call.keywords if each.arg == name)


def test_both_launch_files_are_there() -> None:
    assert [path.name for path in FILES] == ["bridge.launch.py", "demo.launch.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_launch_file_compiles_and_imports_what_ros_has(path: Path, tmp_path: Path) -> None:
    py_compile.compile(str(path), cfile=str(tmp_path / "compiled"), doraise=True)
    module = tree(path)
    assert [node.name for node in module.body if isinstance(node, ast.FunctionDef)][-1] == "generate_launch_description"
    imported = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.module]
    of_ros = [node for node in imported if str(node.module).startswith("launch")]
    assert of_ros
    for node in of_ros:
        assert {name.name for name in node.names} <= KNOWN[str(node.module)]
    assert not any(name.name.startswith("bridge") for node in imported for name in node.names)


def test_every_argument_that_is_used_is_declared_described_and_has_a_default() -> None:
    module = tree(REPOSITORY / "launch" / "bridge.launch.py")
    declared = calls(module, "DeclareLaunchArgument")
    assert first_strings(declared) == ["namespace", "config", "log_level", "respawn"]
    used = first_strings([*calls(module, "LaunchConfiguration"), *calls(module, "given")])
    assert set(used) == set(first_strings(declared))
    for call in declared:
        assert {each.arg for each in call.keywords} >= {"default_value", "description"}


def test_the_daemon_is_run_by_the_interpreter_of_the_launch_and_by_it_alone() -> None:
    (node,) = calls(tree(REPOSITORY / "launch" / "bridge.launch.py"), "Node")
    assert ast.unparse(keyword(node, "executable")) == "sys.executable"
    arguments = keyword(node, "arguments")
    assert isinstance(arguments, ast.List)
    assert [ast.literal_eval(each) for each in arguments.elts[:4]] == ["-m", "bridge", "run", "--config"]
    assert "name" not in {each.arg for each in node.keywords}  # it would rename the node of the configuration


def test_the_default_configuration_is_beside_the_launch_files() -> None:
    assert 'parent.parent / "config" / "bridge.toml"' in (REPOSITORY / "launch" / "bridge.launch.py").read_text()
    assert config.load(REPOSITORY / "config" / "bridge.toml").sources


def test_the_configuration_of_the_demo_is_good(tmp_path: Path) -> None:
    module = tree(REPOSITORY / "launch" / "demo.launch.py")
    (text,) = [
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONFIG"
    ]
    path = tmp_path / "bridge.toml"
    values = {"beacon_port": 5000, "core_port": 5001, "socket": '"/tmp/control.sock"', "state_dir": '"/tmp"'}
    path.write_text(text.format(**values), encoding="utf-8")
    loaded = config.load(path)
    assert [source.type for source in loaded.sources] == ["ndsi", "pupil_core"]
    assert [sink.type for sink in loaded.sinks] == ["ros2"]
