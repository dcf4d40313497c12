"""Reloads and changes of settings: one after the other, each answered to who asked for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from bridge.errors import BridgeError

log = logging.getLogger(__name__)

Settings = dict[str, dict[str, Any]]  # table -> key -> value


class _Asked(NamedTuple):
    """A reload, or with ``settings`` a change of these; without ``answer`` nobody waits for what comes of it."""

    settings: Settings | None
    answer: asyncio.Future[str] | None


class Reloads:
    """``settings`` is what was set since the start, ``refused`` why the last reload of the files was refused."""

    def __init__(
        self, load: Callable[[Settings], Awaitable[str]], begins: Callable[[], None], ended: Callable[[], None]
    ) -> None:
        """``load`` reads the configuration anew under these settings and changes what is different, in words; it raises
        BridgeError when that is refused, and then nothing has changed."""
        self.settings: Settings = {}
        self.refused: str | None = None
        self.busy = False
        self._load = load
        self._begins, self._ended = begins, ended
        self._waiting: list[_Asked] = []
        self._wanted = asyncio.Event()

    def request(self) -> None:
        """For a signal's handler: reloads soon, and logs what comes of it."""
        self._put(_Asked(None, None))

    async def ask(self, settings: Settings | None = None) -> str:
        """What was changed, in words. Raises BridgeError when it is refused."""
        # The work is another task's: who asked over HTTP may be cut off by what is changed.
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._put(_Asked(settings, answer))
        return await answer

    def _put(self, asked: _Asked) -> None:
        self._waiting.append(asked)
        self._wanted.set()

    async def run(self) -> None:
        """Does what is asked for, for ever. One reload is for all who wait for one; each change is for itself."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            self.busy = True
            self._begins()
            plain = [asked for asked in waiting if asked.settings is None]
            for group in ([plain] if plain else []) + [[asked] for asked in waiting if asked.settings is not None]:
                await self._carry_out(group)
            self.busy = False
            self._ended()

    async def _carry_out(self, group: list[_Asked]) -> None:
        changed = group[0].settings
        settings = self.settings if changed is None else _merged(self.settings, changed)
        answers = [asked.answer for asked in group if asked.answer is not None and not asked.answer.done()]
        try:
            words = await self._load(settings)
        except BridgeError as error:
            if changed is None:
                self.refused = str(error)
                log.error("the configuration is refused, the one of before goes on: %s", error)
            for answer in answers:
                answer.set_exception(error)
            return
        self.settings, self.refused = settings, None
        log.info("the configuration was loaded anew: %s", words)
        for answer in answers:
            if not answer.done():  # who asked may have gone meanwhile
                answer.set_result(words)


def _merged(settings: Settings, changed: Settings) -> Settings:
    return {table: {**settings.get(table, {}), **changed.get(table, {})} for table in settings.keys() | changed.keys()}
