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
BACK_OFF_MAX_S = 10.0
STEADY_AFTER_S = 10.0  # a source that ran for this long starts its back-off anew


async def supervise(source: Source) -> None:
    """Returns never; ends when it is cancelled. Any error but DeviceUnavailable is a bug and passes through."""
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
                try:
                    await source.run()
                except DeviceUnavailable as error:
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
