"""What is to be simulated: the options of all devices, and what of them each device gets."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path

_NUMBER = "{n}"


@dataclass(frozen=True)
class CompanionOptions:
    """What to simulate; the defaults are a phone with a perfect clock on a perfect network."""

    # Each is described at its option in `companion.command`.

    name: str = "Simulated Companion"
    devices: int = 1
    interface: str = "127.0.0.1"
    beacon_port: int = 5670
    gaze_rate: float = 120.0
    event_rate: float = 1.0
    imu_rate: float = 200.0
    imu_batch: int = 10
    scene_rate: float = 30.0
    scene_format: str = "jpeg"
    scene_bytes: int | None = None
    eyes_rate: float = 0.0
    eyes_format: str = "jpeg"
    key_interval: int = 30
    h264_start: str = "key"
    other_sensor: tuple[str, ...] = ()
    refuse_recording: str | None = None
    offset_s: float = 0.0
    offset_step_s: float = 10.0
    drift_ppm: float = 0.0
    drift_step_ppm: float = 2.0
    clock_follows_streaming: bool = False
    restart_step_s: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    asymmetry_ms: float = 0.0
    loss: float = 0.0
    truth: Path | None = None
    seed: int = 0
    zre_uuid: uuid.UUID | None = None
    sensor_uuid_seed: str | None = None
    clock_origin_ns: int | None = None
    utc_at_origin_ns: int | None = None
    duration_s: float = 0.0
    control: str | None = None

    def of_device(self, number: int) -> CompanionOptions:
        """Those of one device alone, from 1. Raises `ValueError` for what several devices cannot share."""
        if self.devices == 1:
            return replace(
                self, name=self.name.replace(_NUMBER, "1"), truth=self.truth and _numbered(self.truth, 1, needed=False)
            )
        if self.zre_uuid is not None:
            raise ValueError("--zre-uuid is for one device")
        further = number - 1
        name = self.name if _NUMBER in self.name else f"{self.name} {_NUMBER}"
        return replace(
            self,
            devices=1,
            name=name.replace(_NUMBER, str(number)),
            offset_s=self.offset_s + further * self.offset_step_s,
            drift_ppm=self.drift_ppm + further * self.drift_step_ppm,
            truth=self.truth and _numbered(self.truth, number, needed=True),
            seed=self.seed + further,
            sensor_uuid_seed=self.sensor_uuid_seed and f"{self.sensor_uuid_seed}/{number}",
        )


def _numbered(path: Path, number: int, *, needed: bool) -> Path:
    if _NUMBER in path.name or not needed:
        return path.with_name(path.name.replace(_NUMBER, str(number)))
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
