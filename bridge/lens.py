"""From a pixel of a camera to a direction: the inverse of the lens models that ROS' CameraInfo knows. Pure maths.

Source: OpenCV's documentation of its pinhole (plumb_bob, rational_polynomial) and fisheye (equidistant) models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from bridge.streams import Camera

ROUNDS: Final = 100  # of the fixed point at the corners of Pupil Core's lenses; in the middle ten are enough
CLOSE: Final = 1e-9  # of a focal length
FLAT: Final = 1e-3

Unprojection = Callable[[float, float], tuple[float, float, float]]


def unprojection(camera: Camera) -> Unprojection:
    """``(x_px, y_px) -> (x, y, z)``: a vector along the ray of that pixel, not of unit length, in the optical frame.

    Pixels that no ray can reach (outside of what the model was fitted to) get the nearest that was found.
    """
    fx, cx, fy, cy = camera.k[0], camera.k[2], camera.k[4], camera.k[5]
    undistort = _fisheye(camera.d) if camera.model == "equidistant" else _pinhole(camera.d)

    def unproject(x_px: float, y_px: float) -> tuple[float, float, float]:
        return undistort((x_px - cx) / fx, (y_px - cy) / fy)

    return unproject


def _fisheye(d: tuple[float, ...]) -> Unprojection:
    k1, k2, k3, k4 = (*d, 0.0, 0.0, 0.0, 0.0)[:4]

    def image(theta: float) -> float:
        t2 = theta * theta
        return theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))

    def slope(theta: float) -> float:
        t2 = theta * theta
        return 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))

    # Beyond it the image turns back, and one pixel would be that of several angles.
    limit = next((step / 100 for step in range(314) if slope((step + 1) / 100) <= 0.0), math.pi)

    def undistort(x: float, y: float) -> tuple[float, float, float]:
        distorted = math.hypot(x, y)
        if distorted == 0.0:
            return 0.0, 0.0, 1.0
        low, high = 0.0, limit
        theta = min(distorted, limit)
        for _ in range(ROUNDS):  # Newton's, between what is known to be too little and too much
            excess = image(theta) - distorted
            low, high = (low, theta) if excess > 0.0 else (theta, high)
            moved = theta - excess / slope(theta)
            if not low <= moved <= high or abs(moved - theta) > (high - low) / 2:
                moved = (low + high) / 2
            if abs(moved - theta) < CLOSE:
                break
            theta = moved
        length = math.hypot(x, y)
        side = math.sin(theta) / length
        return x * side, y * side, math.cos(theta)

    return undistort


def _pinhole(d: tuple[float, ...]) -> Unprojection:
    k1, k2, p1, p2, k3, k4, k5, k6 = (*d, *([0.0] * 8))[:8]

    def undistort(x: float, y: float) -> tuple[float, float, float]:
        u, v = x, y
        for _ in range(ROUNDS):  # Newton's, in two dimensions
            r2 = u * u + v * v
            over = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
            under = 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
            radial = over / under
            slope = (k1 + r2 * (2 * k2 + r2 * 3 * k3) - radial * (k4 + r2 * (2 * k5 + r2 * 3 * k6))) / under  # by r2
            off_x = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u) - x
            off_y = v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v - y
            by_u = radial + 2 * u * u * slope + 2 * p1 * v + 6 * p2 * u
            by_v = radial + 2 * v * v * slope + 6 * p1 * v + 2 * p2 * u
            across = 2 * u * v * slope + 2 * p1 * u + 2 * p2 * v
            determinant = by_u * by_v - across * across
            if determinant <= FLAT:  # where the model turns round: no ray gets further out
                break
            step_u = (by_v * off_x - across * off_y) / determinant
            step_v = (by_u * off_y - across * off_x) / determinant
            u, v = u - step_u, v - step_v
            if abs(step_u) + abs(step_v) < CLOSE:
                break
        return u, v, 1.0

    return undistort
