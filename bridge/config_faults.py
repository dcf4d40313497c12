"""Faults of a configuration in words for the person who wrote it: which place, which line, what to do about it."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Place = tuple[str | int, ...]

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
# Finding a line parses the text some ten times (1 ms each for 100 lines): beyond what people write, do without.
_MOST_NUMBERED_LINES: Final = 1000
_MOST_NUMBERED_FAULTS: Final = 100
_BOUNDS: Final = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


SECRETS: Final = ("token",)  # whose values no message may show


class Fault(NamedTuple):
    """One thing that is wrong, at ``place`` of the TOML tree. ``{other}`` in the text stands for the other place."""

    place: Place
    text: str
    other: Place = ()


def show(value: object) -> str:
    """A value as its writer knows it from the file, in one short line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
    return str(value)


def spell(place: Place) -> str:
    """``source[0].device[1].name`` for ("source", 0, "device", 1, "name")."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE_KEY.fullmatch(part) else json.dumps(part))
    return text


def report(text: str, origin: str, faults: list[Fault]) -> str:
    """All faults of the file ``text``, one a line, in the order of the file; those that are nowhere in it come last."""
    numbered = text.count("\n") < _MOST_NUMBERED_LINES and len(faults) <= _MOST_NUMBERED_FAULTS
    line_of = _line_finder(text) if numbered else lambda place: None
    placed = sorted(((line_of(fault.place), fault) for fault in faults), key=lambda pair: pair[0] or float("inf"))
    lines = [f"{origin}: {len(placed)} fault{'s' if len(placed) > 1 else ''}"]
    lines += [f"  {spell(place)}{f' (line {line})' if line else ''}: {words}" for line, (place, words, _) in placed]
    return "\n".join(lines)


def faults_of(error: ValidationError, root: type[BaseModel]) -> Iterator[Fault]:
    """The faults that pydantic found in a tree of ``root``, in our words."""
    tables = dict(tables_of(root))
    for detail in error.errors(include_url=False):
        loc = detail["loc"]
        if detail["type"] == "too_short" and isinstance(detail["input"], list | tuple) and detail["input"]:
            continue  # not empty, but pydantic counts only the entries that have no fault
        table: tuple[str, ...] = ()
        place: Place = ()
        # In a list of several types of table, pydantic puts the type between the index and the key.
        indexed = False
        for part in loc[:-1] if detail["type"] == "extra_forbidden" else loc:
            if isinstance(part, int):
                place += (part,)
            else:
                table += (part,)
                place += () if indexed and table in tables else (part,)
            indexed = isinstance(part, int)
        if detail["type"] == "extra_forbidden":
            known = [key for key, _ in _keys(tables[table])]
            yield Fault((*place, loc[-1]), f"unknown key; {_guess(str(loc[-1]), known, 'known here:')}")
        elif detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
            known = [key[-1] for key in tables if key[:-1] == table]
            given = detail["input"].get("type") if isinstance(detail["input"], dict) else None
            words = f"{show(given)} is no type of {table[-1]};" if given is not None else "missing;"
            yield Fault((*place, "type"), f"{words} {_guess(show(given).strip(chr(39)), known, 'one of', quoted=True)}")
        else:
            yield Fault(place, _words(detail, place))


def tables_of(model: type[BaseModel], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Every table of a configuration: ("source", "ndsi", "device") -> its model; with types, without indices."""
    yield at, model
    for key, annotation in _keys(model):
        inner = list(_models_in(annotation))
        for found in inner:
            tag = get_args(found.model_fields["type"].annotation) if "type" in found.model_fields else ()
            yield from tables_of(found, (*at, key, *tag))


def _keys(model: type[BaseModel]) -> list[tuple[str, Any]]:
    return [(field.alias or name, field.annotation) for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _guess(given: str, known: list[str], otherwise: str, *, quoted: bool = False) -> str:
    close = difflib.get_close_matches(given[:100].lower(), known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{otherwise} {', '.join(repr(key) if quoted else key for key in known)}"


def _words(detail: ErrorDetails, place: Place) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    given = "this" if place and place[-1] in SECRETS else show(detail["input"])
    listed = f"[[{'.'.join(str(part) for part in place if not isinstance(part, int))}]]"
    match kind:
        case "value_error":
            return str(context["error"])
        case "missing" | "too_short" if place in (("source",), ("sink",)):
            return f"there must be at least one {listed}"
        case "missing":
            return "missing; it has no default"
        case "tuple_type" if place[-1] in ("source", "sink", "marker", "device"):
            return f"must be a list of tables: write {listed} with double brackets"
        case "tuple_type":
            return f"must be a list in [ ], not {given}"
        case "too_short" if place[-1] in SECRETS:
            return f"must have at least {context['min_length']} letters"
        case "too_short":
            return "must not be empty"
        case "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"])
            return f"{given} is not possible; {_guess(given.strip(chr(39)), known, 'one of', quoted=True)}"
        case "int_type":
            return f"must be a whole number, not {given}"
        case "float_type" | "finite_number":
            return f"must be a finite number, not {given}"
        case "string_type":
            return f'must be text in "quotes", not {given}'
        case "string_too_short":
            return "must not be empty"
        case "string_too_long" | "too_long":
            return f"must have at most {context['max_length']} characters"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a table, not {given}"
        case _ if kind in _BOUNDS:
            key, words = _BOUNDS[kind]
            return f"{given} is out of range: it must be {words} {context[key]:g}"
    return detail["msg"]


def _line_finder(text: str) -> Callable[[Place], int | None]:
    """A function from a place to the line (from 1) where its statement begins; its table's where it is not in the file.

    tomllib tells no positions. But beginnings of the text that end between two statements are TOML too, and a place
    that is in one of them is in all longer ones: so the line is found by bisection.
    """
    lines = text.replace("\r\n", "\n").split("\n")

    @lru_cache(maxsize=128)
    def beginning(count: int) -> dict[str, Any]:
        """The tree of the shortest valid beginning that has at least ``count`` lines."""
        while True:
            try:
                return tomllib.loads("\n".join(lines[:count]))
            except ValueError:  # inside a value of several lines
                count += 1

    def line_of(place: Place) -> int | None:
        try:
            while place and not _holds(beginning(len(lines)), place):
                place = place[:-1]
            if not place:
                return None
            return bisect_left(range(len(lines)), True, key=lambda count: _holds(beginning(count), place))
        except RecursionError:  # nested so deeply that it could be parsed only with the shallower stack of before
            return None

    return line_of


def _holds(tree: Any, place: Place) -> bool:
    for part in place:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
