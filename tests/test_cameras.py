"""Intrinsics: the shipped files, camera_calibration's and Pupil Capture's formats, hostile files."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bridge import cameras
from bridge.errors import ConfigError
from bridge.streams import Camera

SHIPPED = sorted((Path(__file__).parents[1] / "config" / "intrinsics").glob("*.yaml"))

# As `ros2 run camera_calibration cameracalibrator` writes it, short numbers included.
CALIBRATION = """\
image_width: 640
image_height: 480
camera_name: narrow_stereo
camera_matrix:
  rows: 3
  cols: 3
  data: [438.78344,   0.     , 305.59358,
           0.     , 437.302  , 243.73864,
           0.     ,   0.     ,   1.     ]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.361976, 1.1051e-1, 1e-05, -.000555, 0.000000]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1., 0., 0.,
         0., 1., 0.,
         0., 0., 1.]
projection_matrix:
  rows: 3
  cols: 4
  data: [393.65372,   0.     , 322.79704,   0.     ,
           0.     , 420.03171, 242.39442,   0.     ,
           0.     ,   0.     ,   1.     ,   0.     ]
"""


def _write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "camera.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _refusal(tmp_path: Path, text: str | bytes) -> str:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        cameras.load(path)
    said = str(raised.value)
    assert all(line.startswith(f"{path}: ") for line in said.splitlines())
    assert max(map(len, said.splitlines())) < len(str(path)) + 200
    return said.replace(f"{path}: ", "")


def test_a_file_of_camera_calibration_is_read_to_its_last_number(tmp_path: Path) -> None:
    assert cameras.load(_write(tmp_path, CALIBRATION)) == Camera(
        name="narrow_stereo",
        width_px=640,
        height_px=480,
        model="plumb_bob",
        d=(-0.361976, 0.11051, 0.00001, -0.000555, 0.0),
        k=(438.78344, 0, 305.59358, 0, 437.302, 243.73864, 0, 0, 1),
        r=(1, 0, 0, 0, 1, 0, 0, 0, 1),
        p=(393.65372, 0, 322.79704, 0, 0, 420.03171, 242.39442, 0, 0, 0, 1, 0),
    )


def test_a_byte_order_mark_windows_lines_and_a_document_marker_change_nothing(tmp_path: Path) -> None:
    plain = cameras.load(_write(tmp_path, CALIBRATION))
    assert cameras.load(_write(tmp_path, ("\ufeff---\n" + CALIBRATION).replace("\n", "\r\n"))) == plain


def test_four_coefficients_of_plumb_bob_are_five_with_a_zero(tmp_path: Path) -> None:
    four = CALIBRATION.replace("cols: 5", "cols: 4").replace(", 0.000000]", "]")
    assert cameras.load(_write(tmp_path, four)).d == (-0.361976, 0.11051, 0.00001, -0.000555, 0.0)


def test_there_are_shipped_files_for_invisible_and_core() -> None:
    assert {(path.stem.rpartition("_")[0], cameras.load(path).width_px) for path in SHIPPED} == {
        ("pupil_invisible", 1088),
        ("pupil_core", 640),
        ("pupil_core", 1280),
        ("pupil_core", 1920),
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_says_whose_numbers_it_has_and_makes_sense(path: Path) -> None:
    camera = cameras.load(path)
    assert path.stem.endswith(f"_{camera.width_px}x{camera.height_px}")
    comment = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    assert "github.com/pupil-labs/pupil" in comment
    assert "of your own camera is better" in comment
    # Wide-angle lenses with square pixels, their centre near the middle.
    fx, fy = camera.k[0], camera.k[4]
    assert 60 < math.degrees(2 * math.atan(camera.width_px / 2 / fx)) < 140
    assert fy == pytest.approx(fx, rel=0.01)
    assert camera.k[2] == pytest.approx(camera.width_px / 2, rel=0.06)
    assert camera.k[5] == pytest.approx(camera.height_px / 2, rel=0.12)
    assert (camera.p[:3], camera.p[4:7], camera.p[8:11]) == (camera.k[:3], camera.k[3:6], camera.k[6:])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_an_ordinary_yaml_reader_finds_the_same_numbers(path: Path) -> None:
    camera, tree = cameras.load(path), yaml.safe_load(path.read_text())
    assert list(camera.k) == tree["camera_matrix"]["data"]
    assert list(camera.d) == tree["distortion_coefficients"]["data"]
    assert list(camera.r) == tree["rectification_matrix"]["data"]
    assert list(camera.p) == tree["projection_matrix"]["data"]
    assert camera.model == tree["distortion_model"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("image_width: 640", "", "image_width: is missing"),
        ("image_width: 640", "image_width: wide", "line 1: image_width: has to be a whole number"),
        ("image_width: 640", "image_width: -640", "line 1: image_width: has to be a whole number"),
        ("image_width: 640", "image_width: 0", "line 1: image_width: has to be a whole number"),
        ("image_width: 640", "image_width: 99999", "line 1: image_width: has to be a whole number"),
        ("camera_name: narrow_stereo", "camera_name: [a]", "line 3: camera_name: has to be a text"),
        ("camera_name: narrow_stereo", "camera_name:", "line 3: camera_name: has to be a text"),
        ("437.302", ".nan", "line 8: camera_matrix: '.nan' is no finite number"),
        ("437.302", "-.inf", "line 8: camera_matrix: '-.inf' is no finite number"),
        ("437.302", "1e999", "line 8: camera_matrix: '1e999' is no finite number"),
        ("437.302", "1:30", "line 8: camera_matrix: '1:30' is no finite number"),
        ("437.302", "0x10", "line 8: camera_matrix: '0x10' is no finite number"),
        ("437.302", "[437]", "line 8: camera_matrix: a list or table is no finite number"),
        ("437.302", "9" * 5000, "line 8: camera_matrix: '9999"),
        ("437.302", "-437.302", "camera_matrix: has a focal length that is not above zero"),
        ("438.78344,   0.     ,", "438.78344,", "camera_matrix: has 8 numbers for 3 x 3"),
        ("cols: 3\n  data: [438", "cols: 2\n  data: [438", "camera_matrix: cannot have 3 rows and 2 columns"),
        ("rows: 3\n  cols: 4", "rows: 3.0\n  cols: 4", "projection_matrix: rows has to be a small whole number"),
        ("[1., 0., 0.,", "[0., 0., 0.,", "rectification_matrix: is no rotation"),
        ("1.     ]\ndist", "2.     ]\ndist", "camera_matrix: has to have the form fx 0 cx / 0 fy cy / 0 0 1"),
        ("plumb_bob", "fov", "line 10: distortion_model: 'fov' is none of plumb_bob, rational_polynomial, equidistant"),
        ("plumb_bob", "equidistant", "distortion_coefficients: equidistant has 4 coefficients, not 5"),
        ("plumb_bob", "rational_polynomial", "rational_polynomial has 8 coefficients, not 5"),
        (
            "  data: [1., 0., 0.,\n         0., 1., 0.,\n         0., 0., 1.]",
            "",
            "rectification_matrix: data has to be",
        ),
        ("camera_name:", "image_width:", "line 3: 'image_width' is there twice"),
    ],
)
def test_a_fault_is_named_at_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in CALIBRATION
    assert said in _refusal(tmp_path, CALIBRATION.replace(old, new, 1))


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    wrong = CALIBRATION.replace("640", "x").replace("437.302", "y").replace("plumb_bob", "z")
    lines = _refusal(tmp_path, wrong).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["distortion_model", "image_width", "camera_matrix"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no table"),
        ("[]", "is no table"),
        ("just words", "is no table"),
        ("a: [1, 2", "is not valid YAML"),
        ("a: \x01", "is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        ("a: !!python/object/apply:os.system ['true']", "line 1: has a YAML tag"),
        ("a: !!opencv-matrix {rows: 3}", "line 1: has a YAML tag"),
        ("a: &a [1]\nb: *a", "line 1: has a YAML anchor"),
        ("a: &a {x: 1}\nb: {<<: *a}", "line 1: has a YAML anchor"),
        ("a: " + "[" * 30_000, "nested too deeply"),
        ("? [a]\n: b\n", "a key is no text"),
        ("a: 1\n" * 20_000, "is larger than 64 KiB"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert said in _refusal(tmp_path, text)


def test_a_file_that_is_not_there_or_is_a_folder_is_a_config_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, Path("a\0b")):
        with pytest.raises(ConfigError, match="cannot be read"):
            cameras.load(path)


@given(text=st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "camera.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        cameras.load(path)


# Pupil Capture's own files.

RADIAL = {
    "camera_matrix": [[830, 0.0, 660.5], [0.0, 800.25, 373.0], [0.0, 0.0, 1.0]],
    "dist_coefs": [[-0.4, 0.19, -0.001, 0.0018, -0.039]],
    "resolution": [1280, 720],
    "cam_type": "radial",
}
FISHEYE = RADIAL | {"dist_coefs": [[-0.18], [0.04], [-0.05], [0.02]], "cam_type": "fisheye"}


def _capture(tmp_path: Path, found: object) -> Path:
    path = tmp_path / "Pupil_Cam1_ID2.intrinsics"
    path.write_bytes(msgspec.msgpack.encode(found))
    return path


def test_captures_own_file_is_read_by_the_size_of_the_image(tmp_path: Path) -> None:
    path = _capture(tmp_path, {"version": 1, "(1280, 720)": RADIAL, "(1920, 1080)": FISHEYE})
    radial = cameras.load_capture(path, 1280, 720)
    assert (radial.name, radial.model, radial.width_px) == ("Pupil_Cam1_ID2", "plumb_bob", 1280)
    assert radial.d == (-0.4, 0.19, -0.001, 0.0018, -0.039)
    assert radial.k == (830, 0, 660.5, 0, 800.25, 373, 0, 0, 1)
    assert radial.p == (830, 0, 660.5, 0, 0, 800.25, 373, 0, 0, 0, 1, 0)
    fisheye = cameras.load_capture(path, 1920, 1080)
    assert (fisheye.model, fisheye.d) == ("equidistant", (-0.18, 0.04, -0.05, 0.02))


def test_eight_radial_coefficients_are_a_rational_polynomial(tmp_path: Path) -> None:
    eight = RADIAL | {"dist_coefs": [[float(i) for i in range(8)]]}
    assert cameras.load_capture(_capture(tmp_path, {"(1280, 720)": eight}), 1280, 720).model == "rational_polynomial"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"version": 1, "(640, 480)": RADIAL}, "no intrinsics for 1280 x 720 pixels, but for 640 x 480"),
        ({"version": 1}, "but for no size"),
        ({"(1280, 720)": RADIAL | {"cam_type": "dummy"}}, "cam_type is 'dummy'"),
        ({"(1280, 720)": {"cam_type": "radial"}}, "missing required field `camera_matrix`"),
        ({"(1280, 720)": RADIAL | {"camera_matrix": [["a"]]}}, "Expected `float`, got `str`"),
        ({"(1280, 720)": RADIAL | {"camera_matrix": [[1.0]]}}, "camera_matrix: has to be 3 x 3"),
        ({"(1280, 720)": RADIAL | {"dist_coefs": [[1.0]]}}, "has 4 or 5 coefficients, not 1"),
        ({"(1280, 720)": RADIAL | {"dist_coefs": [[math.nan] * 5]}}, "finite"),
        ([1, 2], "is no file of intrinsics"),
    ],
)
def test_what_is_wrong_with_captures_file_is_said(tmp_path: Path, found: object, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        cameras.load_capture(_capture(tmp_path, found), 1280, 720)
    assert said in str(raised.value)


@given(raw=st.binary(max_size=100))
def test_any_bytes_are_no_file_of_capture(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "any.intrinsics"
    for written in (raw, b"\x91" * 5000, b"\x81\xa1" + raw):
        path.write_bytes(written)
        with pytest.raises(ConfigError):
            cameras.load_capture(path, 1280, 720)
