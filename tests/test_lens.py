"""From pixels back to directions, against a forward model that is written here from OpenCV's documentation."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bridge.lens import unprojection
from bridge.streams import Camera

FX, FY, CX, CY = 800.0, 780.0, 640.0, 360.0
SHIPPED = Path(__file__).parents[1] / "config" / "intrinsics"


def camera(model: str, *d: float) -> Camera:
    k = (FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0)
    r = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return Camera("test", 1280, 720, model, d, k, r, (FX, 0.0, CX, 0.0, 0.0, FY, CY, 0.0, 0.0, 0.0, 1.0, 0.0))


def project(seen: Camera, x: float, y: float, z: float) -> tuple[float, float]:
    """Where a point of the optical frame is in the image: OpenCV's projectPoints, and cv::fisheye's."""
    fx, cx, fy, cy = seen.k[0], seen.k[2], seen.k[4], seen.k[5]
    if seen.model == "equidistant":
        r = math.hypot(x, y)
        theta = math.atan2(r, z)
        distorted = theta * (1 + sum(k * theta ** (2 * n) for n, k in enumerate(seen.d[:4], 1)))
        scale = distorted / r if r else 0.0
        return fx * scale * x + cx, fy * scale * y + cy
    k1, k2, p1, p2, k3, k4, k5, k6 = (*seen.d, *([0.0] * 8))[:8]
    u, v = x / z, y / z
    r2 = u**2 + v**2
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        fx * (u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u**2)) + cx,
        fy * (v * radial + p1 * (r2 + 2 * v**2) + 2 * p2 * u * v) + cy,
    )


def angle_rad(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    cross = math.hypot(
        one[1] * other[2] - one[2] * other[1],
        one[2] * other[0] - one[0] * other[2],
        one[0] * other[1] - one[1] * other[0],
    )
    return math.atan2(cross, sum(a * b for a, b in zip(one, other, strict=True)))


def back(seen: Camera, direction: tuple[float, float, float]) -> float:
    """How far off a direction is after it went into the image and back, in radians."""
    return angle_rad(unprojection(seen)(*project(seen, *direction)), direction)


# A wide lens: what can be seen of it is within half a field of view of 50 degrees.
SLOPES = st.tuples(st.floats(-0.85, 0.85), st.floats(-0.85, 0.85))
SMALL = st.floats(-0.002, 0.002)


def monotonic(seen: Camera, slopes: tuple[float, float]) -> bool:
    """Whether the image of the ray through these slopes goes outwards all the way, well short of where it would turn
    back: elsewhere one pixel is the image of several directions."""
    places = [project(seen, slopes[0] * s / 20, slopes[1] * s / 20, 1.0) for s in range(24)]
    radii = [math.hypot((x - CX) / FX, (y - CY) / FY) for x, y in places]
    length = math.hypot(*slopes) / 20
    return all(two - one > 0.35 * length for one, two in itertools.pairwise(radii))


@settings(max_examples=400, deadline=None)
@given(SLOPES, st.floats(-0.35, 0.15), st.floats(-0.1, 0.1), SMALL, SMALL, st.floats(-0.02, 0.02))
def test_plumb_bob_is_undone(
    slopes: tuple[float, float], k1: float, k2: float, p1: float, p2: float, k3: float
) -> None:
    seen = camera("plumb_bob", k1, k2, p1, p2, k3)
    assume(monotonic(seen, slopes))
    assert back(seen, (*slopes, 1.0)) < 1e-4


@settings(max_examples=400, deadline=None)
@given(SLOPES, st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=2), st.lists(st.floats(0.0, 0.3), min_size=3), SMALL)
def test_rational_polynomial_is_undone(
    slopes: tuple[float, float], over: list[float], under: list[float], p: float
) -> None:
    seen = camera("rational_polynomial", *over, p, -p, 0.01, *under[:3])
    assume(monotonic(seen, slopes))
    assert back(seen, (*slopes, 1.0)) < 1e-4


@settings(max_examples=400, deadline=None)
@given(
    st.floats(0.0, 1.4),
    st.floats(0.0, 2 * math.pi),
    st.lists(st.floats(-0.05, 0.05), min_size=4, max_size=4),
)
def test_equidistant_is_undone_up_to_the_side(theta: float, phi: float, d: list[float]) -> None:
    seen = camera("equidistant", *d)
    slopes = [t + sum(k * t ** (2 * n + 1) for n, k in enumerate(d, 1)) for t in (i / 100 for i in range(150))]
    assume(all(two - one > 0.003 for one, two in itertools.pairwise(slopes)))
    direction = math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)
    assert back(seen, direction) < 1e-6


@pytest.mark.parametrize("model", ["plumb_bob", "rational_polynomial", "equidistant"])
def test_without_distortion_a_pixel_is_its_direction(model: str) -> None:
    unproject = unprojection(camera(model, 0.0, 0.0, 0.0, 0.0))
    assert angle_rad(unproject(CX, CY), (0.0, 0.0, 1.0)) < 1e-12
    angle = 1.0 if model == "equidistant" else math.atan(1.0)
    assert angle_rad(unproject(CX + FX, CY), (0.0, 0.0, 1.0)) == pytest.approx(angle)
    x, y, z = unproject(CX + 100.0, CY + 200.0)
    assert x > 0
    assert y > 0
    assert z > 0


@pytest.mark.parametrize("model", ["plumb_bob", "rational_polynomial", "equidistant"])
def test_coefficients_that_are_left_out_are_zero(model: str) -> None:
    short, long = camera(model, -0.1), camera(model, -0.1, *([0.0] * 7))
    for pixel in ((0.0, 0.0), (300.0, 700.0)):
        assert unprojection(short)(*pixel) == unprojection(long)(*pixel)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant"]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.floats(-10, 10), max_size=8),
)
def test_no_pixel_and_no_lens_is_an_error(model: str, x: float, y: float, d: list[float]) -> None:
    assert len(unprojection(camera(model, *d))(x, y)) == 3


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*")) if SHIPPED.exists() else [], ids=lambda path: path.name)
def test_the_shipped_intrinsics_are_undone_over_the_whole_image(path: Path) -> None:
    """From each pixel of a grid out and back into the image: to a hundredth of a pixel."""
    from bridge import cameras

    if path.suffix not in (".yaml", ".yml"):
        pytest.skip("no intrinsics")
    seen = cameras.load(path)
    unproject = unprojection(seen)
    for column in range(21):
        for row in range(21):
            pixel = seen.width_px * column / 20, seen.height_px * row / 20
            x, y, z = unproject(*pixel)
            if seen.model != "equidistant":
                assert z > 0
            assert project(seen, x, y, z) == pytest.approx(pixel, abs=0.01)
