"""What systemd is told of the daemon (sd_notify): ready, a line of status, reloading, stopping, alive.

The protocol is https://www.freedesktop.org/software/systemd/man/sd_notify.html: a datagram of assignments, one a line.
systemd-python's ``daemon.notify`` is not used even where it is installed: it sends on a blocking socket, and the
eleventh message that nobody reads stops its caller for good (measured with 235 on Debian 12). The loop that is to be
watched must not be stopped by its watchdog.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
STATUS_BYTES = 500  # systemd shows the status as one line; more than a few screen widths is no use to anybody


class Notifier:
    """Tells systemd how the daemon is; does nothing where nobody asked for it. Never raises and never blocks.

    A message that does not get through (the other end is slow, or away for a moment) is counted in ``lost``. What it
    said is said again with the next one, so that neither READY nor the status stays unknown.
    """

    def __init__(self, address: str | None = None, watchdog_interval_s: float | None = None) -> None:
        """``address``: a path, or an abstract name after an "@"; None for nobody. See ``from_environment``."""
        self._watchdog_interval_s = watchdog_interval_s
        self._owed: dict[str, str] = {}
        self._socket: socket.socket | None = None
        self._address = ""
        self.lost = 0
        if address is None or not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
            return
        self._address = "\0" + address[1:] if address.startswith("@") else address
        with contextlib.suppress(OSError):  # a sandbox without Unix sockets
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """A notifier as systemd asks for it in ``environ`` (``os.environ``), which it takes out of there.

        It is taken out so that no child process speaks for the daemon, or believes that it is watched itself.
        """
        address, usec, pid = (environ.pop(name, None) for name in VARIABLES)
        interval_s = None
        if usec is not None and usec.isdecimal() and int(usec) > 0 and pid in (None, "", str(os.getpid())):
            interval_s = int(usec) / 2e6
        return cls(address or None, interval_s)

    @property
    def enabled(self) -> bool:
        """Whether there is anybody to tell."""
        return self._socket is not None

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often ``watchdog`` is to be called, in seconds: half of systemd's patience. None: nobody waits for it."""
        return self._watchdog_interval_s if self.enabled else None

    def ready(self, status: str) -> None:
        """The daemon does its work (again, after a reload)."""
        self._owed.pop("RELOADING", None)  # a reload that was never announced must not begin after its end
        self._owed.pop("MONOTONIC_USEC", None)
        self._send({"READY": "1", "STATUS": _one_line(status)})

    def status(self, text: str) -> None:
        """The line that ``systemctl status`` shows."""
        self._send({"STATUS": _one_line(text)})

    def reloading(self) -> None:
        """The configuration is being read anew; ``ready`` ends that."""
        self._owed.pop("READY", None)
        self._send({"RELOADING": "1", "MONOTONIC_USEC": str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)})

    def stopping(self) -> None:
        """The daemon is on its way out."""
        self._owed.clear()
        self._send({"STOPPING": "1", "STATUS": "stopping"})

    def watchdog(self) -> None:
        """The loop is alive."""
        self._send({"WATCHDOG": "1"})

    def close(self) -> None:
        """Nothing is said from here on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, assignments: dict[str, str]) -> None:
        if self._socket is None:
            return
        message = {**self._owed, **assignments}
        text = "\n".join(f"{name}={value}" for name, value in message.items())
        try:
            # By address each time: systemd makes its socket anew when it is executed anew (an upgrade of it).
            self._socket.sendto(text.encode("utf-8", "replace"), self._address)
        except (OSError, ValueError):  # full, gone, not allowed; a zero byte in the address
            self.lost += 1
            message.pop("WATCHDOG", None)
            self._owed = message
        else:
            self._owed = {}


def _one_line(text: str) -> str:
    return " ".join(text.split()).encode("utf-8", "replace")[:STATUS_BYTES].decode("utf-8", "ignore")
