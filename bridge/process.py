"""The process around the daemon: its limits, its signals, its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

WHEELS_MARK = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"  # the ROS wheels of PyPI set it, and LD_LIBRARY_PATH, at each start


def environment_for_others() -> dict[str, str]:
    """The environment for programs that are not this Python: without what the ROS wheels have put there for it."""
    environ = dict(os.environ)
    if environ.pop(WHEELS_MARK, None) is not None:
        paths = environ.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
        if kept := [path for path in paths if path and not Path(path).is_relative_to(sys.prefix)]:
            environ["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    return environ


def raise_file_limit() -> None:
    """Lets this process have as many open files as it may: every sensor, outlet and made-up peer takes some."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS has limits beyond its limits
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def stop_signal() -> None:
    """Returns at the first SIGINT or SIGTERM."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stopped.set)
        except NotImplementedError:  # Windows: a handler that only wakes the loop
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
    await stopped.wait()


def _has_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # None: started with it closed


def on_reload_signal(callback: Callable[[], None]) -> None:
    """Calls back at every SIGHUP but that of a terminal that is closed, which stops; on systems without it, never."""
    if not hasattr(signal, "SIGHUP"):
        return
    had_terminal = _has_terminal()

    def hung_up() -> None:
        if had_terminal and not _has_terminal():
            signal.raise_signal(signal.SIGTERM)
        else:
            callback()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)


def run_loop(main: Awaitable[None]) -> None:
    """asyncio.run, on a loop that can watch ZeroMQ's descriptors on every system."""

    async def run() -> None:
        await main

    factory = asyncio.SelectorEventLoop if sys.platform == "win32" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())
