"""Where samples come from: one module a protocol, found by its configuration name, imported when it is used."""

from __future__ import annotations

from typing import Protocol

from bridge.pipeline import Pipeline


class Source(Protocol):
    """One entry of the configuration: a place where devices are found."""

    name: str

    def open(self, pipeline: Pipeline) -> None:
        """Declares the devices and streams that the configuration names, before any of them is there."""

    async def run(self) -> None:
        """Serves its devices until it is cancelled.

        Raises DeviceUnavailable to be run again after a back-off.
        """

    def status(self) -> dict[str, object]:
        """Counters and facts for the status, JSON types only."""
