"""The HTTP server over reloads: started, moved, given another token and stopped as the configuration says."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING

from bridge.config import HttpConfig
from bridge.control import Control
from bridge.errors import BridgeError
from bridge.service.http_settings import HttpSettings

if TYPE_CHECKING:
    from bridge.service.http import HttpServer


class HttpLife:
    """The server that there is now, if any. It is loaded only when one is configured."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._server: HttpServer | None = None
        self._settings: HttpSettings | None = None
        self._stopping: asyncio.Future[None] | None = None

    async def serve(self, config: HttpConfig) -> None:
        """Listens where this configuration says. Raises BridgeError; what listened before then goes on."""
        settings = None
        if config.listen is not None:
            host, port = config.listen
            settings = HttpSettings(host, port, config.secret())
        if settings == self._settings:  # with the token: that of a file may be another one now
            return
        before, told = self._server, self._settings
        # The same port: the new one listens there, or on all addresses.
        in_the_way = before is not None and settings is not None and told is not None and settings.port == told.port
        if in_the_way and before is not None:
            await before.stop()
        try:
            self._server = None if settings is None else await self._start(settings)
        except BridgeError:
            if in_the_way and before is not None:
                await before.start()
            raise
        self._settings = settings
        if before is not None and not in_the_way:
            # Not waited for: the one who asked for all this may be its client.
            self._stopping = asyncio.ensure_future(before.stop())

    async def _start(self, settings: HttpSettings) -> HttpServer:
        http = await asyncio.to_thread(importlib.import_module, "bridge.service.http")  # it takes 0.2 s
        server: HttpServer = http.HttpServer(self._control, settings)
        await server.start()
        return server

    async def stop(self) -> None:
        if self._stopping is not None:
            await self._stopping
        if self._server is not None:
            await self._server.stop()
