"""What others do, to compare the bridge with: one class a method, each an ``Estimator`` of ``benchmarks.clock.score``.

Each is written from what its source describes or does, and no code is taken from it. A method that knows no bound is
given the half of the smallest round trip that its answer rests on, which is what its author could have said. An offset
is what is added to device time to get host time. All times are float seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.clock.baselines.chrony import Chrony
from benchmarks.clock.baselines.hull import Hull
from benchmarks.clock.baselines.kalman import Kalman
from benchmarks.clock.baselines.lsl import LslBurst
from benchmarks.clock.baselines.ntp import NtpFilter
from benchmarks.clock.baselines.once import Arrival, MeanOfEchoes, OneMidpoint
from benchmarks.clock.baselines.pupil import PupilSync
from benchmarks.clock.score import Estimator

BASELINES: dict[str, Callable[[dict[str, Any]], Estimator]] = {
    "arrival": Arrival,
    "one-midpoint": OneMidpoint,
    "mean-of-echoes": MeanOfEchoes,
    "lsl-burst": LslBurst,
    "pupil-sync": PupilSync,
    "pupil-sync-fresh": partial(PupilSync, fresh=True),
    "ntp-filter": NtpFilter,
    "chrony": Chrony,
    "kalman": Kalman,
    "hull": Hull,
}
