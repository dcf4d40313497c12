"""Where the HTTP server listens and who may use it. Apart from the server, so that it costs no import of it."""

from __future__ import annotations

import ipaddress

import msgspec


class HttpSettings(msgspec.Struct, frozen=True):
    """``host`` is an address or "localhost"; port 0 takes any that is free.

    Commands need the ``token``; without one they are refused. Reading needs it too where ``host`` is not a loopback
    address, unless ``open_reads``. ``/healthz`` always answers, and leaves out the sentences for those who may not
    read.
    """

    host: str
    port: int
    token: str | None = None
    open_reads: bool = False

    def __repr__(self) -> str:
        token = "None" if self.token is None else "..."  # a secret has no business in a log or a traceback
        return f"HttpSettings({self.host!r}, {self.port}, token={token}, open_reads={self.open_reads})"

    @property
    def loopback(self) -> bool:
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, which may mean any address
            return False

    @property
    def reads_are_open(self) -> bool:
        return self.open_reads or self.loopback
