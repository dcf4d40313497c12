"""Where a configuration comes from: its file, the drop-ins beside it, the environment. Later ones win, key by key.

Drop-ins are the files ``config.d/*.toml`` beside the file, in the order of their names. A table such as [clock] is
merged key by key. An entry of a list changes the earlier one that it identifies: a [[sink]] by its type, a Pupil Core
[[source]] by its name, an NDSI one by interface and port, a [[source.device]] by its name, a [[marker]] by what it
listens to; any other one is added.
Every place of the merged tree knows the file that it is from, so that a fault is reported where it was written.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from bridge.config_checks import DEFAULT_BEACON_PORT, DEFAULT_CORE_NAME, marker_identity
from bridge.config_faults import Fault, Place, report, spell
from bridge.errors import ConfigError

ENVIRONMENT: Final = "the environment"
PREFIX: Final = "PUPIL_BRIDGE_"
# Variables with the prefix that are no settings of the configuration: the options of commands.
OPTIONS: Final = ("PUPIL_BRIDGE_CONFIG", "PUPIL_BRIDGE_SOCKET")


class Layer(NamedTuple):
    """One file's text and tree; for the environment, ``variables`` maps places to the names of variables."""

    origin: str
    text: str
    tree: dict[str, Any]
    variables: Mapping[Place, str] = {}


class Merged:
    """The tree of all layers, and for each of its places the layer and the place there."""

    def __init__(self, layers: list[Layer]) -> None:
        self.tree: dict[str, Any] = {}
        self._layers = layers
        self._places: dict[Place, tuple[int, Place]] = {}
        for number, layer in enumerate(layers):
            try:
                self._table(self.tree, layer.tree, (), (), number)
            except RecursionError as error:
                raise ConfigError(f"{layer.origin}: is nested too deeply") from error

    def _table(self, into: dict[str, Any], table: dict[str, Any], place: Place, local: Place, layer: int) -> None:
        for key, value in table.items():
            self._value(into, key, value, (*place, key), (*local, key), layer)

    def _value(self, into: Any, key: str, value: Any, place: Place, local: Place, layer: int) -> None:
        known = into.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            self._table(known, value, place, local, layer)
        elif isinstance(known, list) and isinstance(value, list) and key in ("source", "sink", "marker", "device"):
            self._entries(known, value, place, local, layer)
        else:
            # Never the layer's own lists and tables: what later layers do to them is not in its file.
            into[key] = _copy(value)
            self._places[place] = (layer, local)

    def _entries(self, into: list[Any], entries: list[Any], place: Place, local: Place, layer: int) -> None:
        earlier = {identity: index for index, entry in enumerate(into) if (identity := _identity(place[-1], entry))}
        for number, entry in enumerate(entries):
            identity = _identity(place[-1], entry)
            index = earlier.get(identity) if identity else None
            if index is not None:
                self._table(into[index], entry, (*place, index), (*local, number), layer)
            else:
                self._places[*place, len(into)] = (layer, (*local, number))
                into.append(_copy(entry))

    def origin(self, place: Place) -> tuple[int, Place]:
        """The layer that wrote this place of the merged tree, or what is around it, and the place in that layer."""
        for length in range(len(place), 0, -1):
            found = self._places.get(place[:length])
            if found is not None:
                layer, local = found
                return layer, (*local, *place[length:])
        return 0, place

    def report(self, faults: list[Fault], of_last: list[Fault]) -> str:
        """All faults, under the file that each is in. ``of_last`` are places of the last layer's own."""
        by_layer = {len(self._layers) - 1: list(of_last)} if of_last else {}
        for fault in faults:
            layer, local = self.origin(fault.place)
            by_layer.setdefault(layer, []).append(Fault(local, self._words(fault, layer)))
        return "\n".join(_report(self._layers[layer], found) for layer, found in sorted(by_layer.items()))

    def _words(self, fault: Fault, layer: int) -> str:
        if not fault.other:
            return fault.text
        other_layer, other = self.origin(fault.other)
        where = "" if other_layer == layer else f" of {self._layers[other_layer].origin}"
        return fault.text.replace("{other}", spell(other) + where)


def _report(layer: Layer, faults: list[Fault]) -> str:
    if not layer.variables:
        return report(layer.text, layer.origin, faults)
    lines = [f"{layer.origin}: {len(faults)} fault{'s' if len(faults) > 1 else ''}"]
    return "\n".join(
        [*lines, *(f"  {layer.variables.get(place) or spell(place)}: {words}" for place, words, _ in faults)]
    )


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copy(inner) for inner in value]
    return value


def _identity(kind: str | int, entry: Any) -> tuple[Any, ...] | None:
    """What an entry of a list is known by; None where it has nothing."""
    if not isinstance(entry, dict):
        return None
    if kind == "marker":
        return marker_identity(entry)
    name = entry.get("name", DEFAULT_CORE_NAME if kind == "source" else None)
    match kind, entry.get("type"):
        case "sink", str(sink):
            return (sink,)
        case "source", "pupil_core" if isinstance(name, str):
            return ("pupil_core", name)
        case "source", "ndsi":
            found = ("ndsi", entry.get("interface", "auto"), entry.get("beacon_port", DEFAULT_BEACON_PORT))
            return found if all(isinstance(part, str | int) for part in found) else None
        case "device", _ if isinstance(name, str):
            return (name,)
    return None


def drop_ins(path: Path) -> list[Path]:
    """The drop-in files of the configuration file ``path``, in the order in which they count. Raises ConfigError."""
    directory = path.parent / "config.d"
    try:  # glob would pass over what this user may not read
        return sorted(
            found for found in directory.iterdir() if found.suffix == ".toml" and not found.name.startswith(".")
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be read: {error.strerror or error}") from error


def environment(environ: Mapping[str, str], tables: Mapping[str, Mapping[str, bool]]) -> tuple[Layer, list[Fault]]:
    """The settings that variables such as PUPIL_BRIDGE_CLOCK_HOLD_S give, and the variables that are none.

    ``tables``: table -> key -> whether its value is text, which needs no quotes in a variable.
    """
    known = {
        f"{PREFIX}{table}_{key}".upper(): (table, key, text)
        for table, keys in tables.items()
        for key, text in keys.items()
    }
    tree: dict[str, Any] = {}
    variables: dict[Place, str] = {}
    faults: list[Fault] = []
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in OPTIONS:
            continue
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            variables[name,] = name
            faults.append(Fault((name,), f"is no setting{f'; did you mean {close[0]}?' if close else ''}"))
            continue
        table, key, text = known[name]
        tree.setdefault(table, {})[key] = value if text else _parsed(value)
        variables[table, key] = name
    return Layer(ENVIRONMENT, "", tree, variables), faults


def _parsed(value: str) -> Any:
    """A value as TOML writes it; what is none stays text, which the check of its type then names."""
    try:
        tree = tomllib.loads(f"value = {value}")
        return tree["value"] if len(tree) == 1 else value  # lines of their own are no part of a value
    except (ValueError, RecursionError):
        return value
