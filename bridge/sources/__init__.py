"""Where samples come from: one module a protocol, found by its configuration name, imported when it is used."""

from __future__ import annotations

from typing import Protocol

from bridge.config import ClockConfig, NdsiSource
from bridge.pipeline import Pipeline


class Source(Protocol):
    """One entry of the configuration: a place where devices are found."""

    name: str

    def open(self, pipeline: Pipeline) -> None:
        """Declares the devices and streams that the configuration names, before any of them is there."""

    @property
    def device_names(self) -> tuple[str, ...]:
        """The devices that this source has declared so far."""

    async def reconfigure(self, config: NdsiSource) -> None:
        """Changes the devices of a source of many; called for those alone."""

    def set_clock(self, clock: ClockConfig) -> None:
        """Other intervals between round trips, from now on."""

    async def run(self) -> None:
        """Serves its devices until it is cancelled.

        Raises DeviceUnavailable to be run again after a back-off.
        """

    def status(self) -> dict[str, object]:
        """Counters and facts for the status, JSON types only."""
