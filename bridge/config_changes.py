"""What has to be done to go from one configuration to another while devices stream. Pure: the daemon does it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bridge.config import Config, MarkerConfig, NdsiSource, Ros2Sink, Sink, Source

Key = tuple[str, ...]


class Changes(NamedTuple):
    """``stop`` is done before ``reconfigure``, that before ``start``. ``words`` say it all to a person."""

    close_sinks: tuple[str, ...]
    open_sinks: tuple[Sink, ...]
    stop: tuple[Key, ...]
    reconfigure: tuple[NdsiSource, ...]
    start: tuple[Source, ...]
    later: tuple[str, ...]  # settings that take effect at the next start
    words: str


def source_key(source: Source) -> Key:
    """What a source is known by: where that is the same, it is the same source."""
    if isinstance(source, NdsiSource):
        return ("ndsi", str(source.interface), str(source.beacon_port))
    return ("pupil_core", source.name)


def changes(old: Config, new: Config, open_sinks: Mapping[str, Sink], owners: Mapping[str, Key]) -> Changes:
    """``open_sinks``: those that are open, by type. ``owners``: the source of each device that is known now.

    A source whose device another one is to have begins anew, so that it lets go of the device first.
    """
    before = {source_key(source): source for source in old.sources}
    after = {source_key(source): source for source in new.sources}
    moved = {owners[name] for key, source in after.items() for name in _names(source) if owners.get(name, key) != key}
    removed = [key for key in before if key not in after]
    changed = [key for key in before.keys() & after.keys() if before[key] != after[key]]
    in_place = [source for key in changed if key not in moved and isinstance(source := after[key], NdsiSource)]
    anew = [key for key in before if key in after and (key in moved or (key in changed and key[0] != "ndsi"))]
    added = [source for key, source in after.items() if key not in before]
    wanted: dict[str, Sink] = {sink.type: sink for sink in new.sinks}
    opened = tuple(sink for kind, sink in wanted.items() if not _same_node(open_sinks.get(kind), sink))
    closed = tuple(kind for kind, sink in open_sinks.items() if not _same_node(sink, wanted.get(kind)))
    adjusted = [sink for kind, sink in wanted.items() if sink not in opened and open_sinks[kind] != sink]
    tables = [name for name in ("clock", "logging", "http", "overload") if getattr(old, name) != getattr(new, name)]
    later = tuple(
        f"service.{key}" for key in ("socket", "state_dir") if getattr(old.service, key) != getattr(new.service, key)
    )
    told = [
        *(f"added {_spell(source)}" for source in added),
        *(f"removed {_spell(before[key])}" for key in removed),
        *(f"changed {_spell(after[key])}" for key in sorted(changed)),
        *(opening(sink.type, sink.type in open_sinks) for sink in opened),
        *(f"changed sink {sink.type}" for sink in adjusted),
        *(f"closed sink {kind}" for kind in closed if kind not in wanted),
        *_marker_words(old.markers, new.markers),
        *(f"changed [{name}]" for name in tables),
        *(["changed service.memory_limit_mb"] if old.service.memory_limit_mb != new.service.memory_limit_mb else []),
        *([f"{' and '.join(later)} take{'s' * (len(later) == 1)} effect at the next start"] if later else []),
    ]
    return Changes(
        closed,
        opened,
        (*removed, *anew),
        tuple(in_place),
        (*(after[key] for key in anew), *added),
        later,
        ", ".join(told) or "nothing has changed",
    )


def opening(kind: str, was_open: bool) -> str:
    """What is said of a sink that is opened."""
    return f"{'changed' if was_open else 'opened'} sink {kind}"


def _marker_words(old: Iterable[MarkerConfig], new: Iterable[MarkerConfig]) -> Iterator[str]:
    """What is said of marker streams, which look after themselves."""
    before, after = ({marker.listens_to: marker for marker in markers} for markers in (old, new))
    yield from (f"added marker stream {spell_marker(after[key])}" for key in after if key not in before)
    yield from (f"removed marker stream {spell_marker(before[key])}" for key in before if key not in after)
    same = before.keys() & after.keys()
    changed = (key for key in after if key in same and before[key] != after[key])
    yield from (f"changed marker stream {spell_marker(after[key])}" for key in changed)


def spell_marker(marker: MarkerConfig) -> str:
    """A marker stream by its name, and by what else it is looked for."""
    more = [f"source_id {marker.source_id}" * bool(marker.source_id), f"on {marker.hostname}" * bool(marker.hostname)]
    words = ", ".join(filter(None, more))
    return f"{marker.stream} ({words})" if words else marker.stream


def _same_node(one: Sink | None, other: Sink | None) -> bool:
    """Whether a sink that is open can become the other one as it is."""
    if isinstance(one, Ros2Sink) and isinstance(other, Ros2Sink):
        return all(getattr(one, key) == getattr(other, key) for key in Ros2Sink.AT_OPENING)
    return one == other


def _names(source: Source) -> tuple[str, ...]:
    """The devices that a source's configuration names."""
    return tuple(device.name for device in source.devices) if isinstance(source, NdsiSource) else (source.name,)


def _spell(source: Source) -> str:
    if isinstance(source, NdsiSource):
        return f"ndsi on {source.interface or 'auto'}"
    return source.name
