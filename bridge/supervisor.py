"""Runs one source for ever: run, back off, run again. Its trouble is warned of once, and its recovery said."""

from __future__ import annotations

import asyncio
import logging
import time

import stamina
import stamina.instrumentation

from bridge.errors import DeviceUnavailable
from bridge.sources import Source

log = logging.getLogger(__name__)

BACK_OFF_S = 0.5
BACK_OFF_MAX_S = 3.0  # so that a Capture that is started again is there within 5 s
WELL_AFTER_S = 3.0
STEADY_AFTER_S = 10.0  # a source that ran for this long starts its back-off anew


class Trouble:
    """Why a source does not serve its devices now; ``now`` is None while it does, or may."""

    def __init__(self) -> None:
        self.now: str | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begins(self, words: str) -> None:
        self.now = words
        self._stop_timer()

    def may_be_over(self) -> None:
        """A source that runs for some seconds without an error is well."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(WELL_AFTER_S, self._ends)

    def _ends(self) -> None:
        self.now = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def supervise(source: Source, trouble: Trouble | None = None) -> None:
    """Returns never; ends when it is cancelled. Any error but DeviceUnavailable is a bug and passes through."""
    trouble = trouble or Trouble()
    stamina.instrumentation.set_on_retry_hooks([])  # the messages here say it better
    warned = False
    while True:
        async for attempt in stamina.retry_context(
            on=DeviceUnavailable,
            attempts=None,
            timeout=None,
            wait_initial=BACK_OFF_S,
            wait_max=BACK_OFF_MAX_S,
            wait_jitter=BACK_OFF_S,
        ):
            with attempt:
                started = time.monotonic()
                trouble.may_be_over()
                try:
                    await source.run()
                except DeviceUnavailable as error:
                    trouble.begins(str(error))
                    steady = time.monotonic() - started > STEADY_AFTER_S
                    log.log(
                        logging.DEBUG if warned and not steady else logging.WARNING,
                        "%s: %s; trying again",
                        source.name,
                        error,
                        extra={"SOURCE": source.name},
                    )
                    warned = True
                    if not steady:
                        raise
                else:
                    raise RuntimeError(f"{source.name} has ended by itself")
        await asyncio.sleep(0)
