"""What the simulated Pupil Capture can be told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bridge.simulators.tape import SHORT_TAPE


@dataclasses.dataclass(frozen=True, slots=True)
class CoreOptions:
    """What `pupil-bridge simulate core` can be told; each field is the command line option of the same name."""

    host: str = "127.0.0.1"
    port: int = 50020
    tape: Path = SHORT_TAPE
    synthesise: bool = False
    gaze_rate: float = 120.0
    pupil_rate: float = 120.0
    offset_s: float = 1000.0
    drift_ppm: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    asymmetry_ms: float = 0.0
    loss: float = 0.0
    truth: Path | None = None
    seed: int = 0
    duration_s: float = 0.0
    topics: tuple[str, ...] = ()
    frame_rate: float = 30.0
    frames_by_plugin: bool = False
    missing_plugins: tuple[str, ...] = ()
    calibration_error: str = ""
    gaze_mapping: str = "3d"
    gaze_age_ms: float = 35.0
    integer_keys: bool = False
    binocular_pause_s: float = 2.0
    sync_step_ms: float = 0.0
    sync_every_s: float = 5.0
    time_sync: bool = False
    beacon_port: int = 5670
    log_every_s: float = 0.0
    app: str = "capture"
