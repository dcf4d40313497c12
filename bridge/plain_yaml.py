"""YAML that a person wrote, as texts, lists and tables with their lines: nothing is made of it but these.

No tags, no anchors, no merge keys, no guessing of types: so a small file stays small, and 1e-05 is what it looks like.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from bridge.errors import ConfigError


class Text(NamedTuple):
    line: int
    text: str


class List(NamedTuple):
    line: int
    items: list[Value]


class Table(NamedTuple):
    line: int
    items: dict[str, Value]


Value = Text | List | Table


def parse(path: Path, text: str, deepest: int) -> Table:
    """``text`` as a table, with at most ``deepest`` levels of lists and tables. Raises ConfigError at ``path``."""
    yaml: Any = importlib.import_module("yaml")
    depth = 0
    try:
        # Once over the events, which cost nothing, for what could make more of the file than its size.
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            where = f"{path}: line {event.start_mark.line + 1}"
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ConfigError(f"{where}: has a YAML anchor or alias, which are not taken")
            if tag := getattr(event, "tag", None):
                raise ConfigError(f"{where}: has a YAML tag ({tag}), which is not taken")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > deepest:
                raise ConfigError(f"{where}: is nested too deeply")
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        tree = _value(path, yaml, root) if root is not None else None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError(f"{path}: {where}is not valid YAML: {problem or str(error).splitlines()[0]}") from error
    if not isinstance(tree, Table):
        raise ConfigError(f"{path}: is no table of names and values")
    return tree


def _value(path: Path, yaml: Any, node: Any) -> Value:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        return Text(line, node.value)
    if isinstance(node, yaml.SequenceNode):
        return List(line, [_value(path, yaml, item) for item in node.value])
    items: dict[str, Value] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}: line {line}: a key is no text")
        if key.value in items:
            raise ConfigError(f"{path}: line {key.start_mark.line + 1}: {short(key.value)} is there twice")
        items[key.value] = _value(path, yaml, value)
    return Table(line, items)


def short(text: str) -> str:
    """Quoted, for an error's one line."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
