"""What a value of the configuration must fulfil, and what several tables must fulfil together.

The value checks take what TOML holds and return what the bridge uses, or raise ValueError with words for a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from bridge.config_faults import Fault, Place, show
from bridge.errors import ConfigError

DEFAULT_CORE_NAME: Final = "pupil_core"
DEFAULT_CORE_ADDRESS: Final = "127.0.0.1:50020"
DEFAULT_BEACON_PORT: Final = 5670
DEFAULT_MATCH: Final = "*"
NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_LSL_PREFIX: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 _.-]{0,78}[A-Za-z0-9])?")
_ROS_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
_ADDRESS: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9][A-Za-z0-9._-]{0,252})):(?P<port>[0-9]{1,5})"
)
MOST_NESTED: Final = 100  # tables in tables
TOKEN_LENGTH: Final = 16  # at least
_MOST_PATH_BYTES: Final = 107  # sockaddr_un.sun_path on Linux, without its terminating zero


def device_name(value: str) -> str:
    """A name that ROS topics, LSL streams and files can all carry."""
    if not NAME.fullmatch(value):
        raise ValueError(f"{show(value)} must be a-z, 0-9 and _, begin with a letter, and have at most 40 characters")
    return value


def lsl_prefix(value: str) -> str:
    """The beginning of LSL stream names: no quotes, which would break a recorder's queries."""
    if not _LSL_PREFIX.fullmatch(value):
        raise ValueError(
            f"{show(value)} must be letters, digits, space, '_', '.' or '-', begin and end with a letter or digit, "
            "and have at most 80 characters"
        )
    return value


def lsl_query(value: str) -> str:
    """What an LSL stream says of itself, fit for a query, whose language (XPath) has no way to write both quotes."""
    if not value.isprintable() or ("'" in value and '"' in value):
        raise ValueError(f"{show(value)} cannot be looked for in LSL: it has letters for control, or both ' and \"")
    return value


def ros_node_name(value: str) -> str:
    """The name of a ROS node."""
    if len(value) > 100 or not _ROS_NAME.fullmatch(value):
        raise ValueError(f"{show(value)} is not a ROS name: letters, digits and single '_', first a letter")
    return value


def ros_namespace(value: str) -> str:
    """A relative ROS name of one or more parts."""
    if len(value) > 100 or not all(_ROS_NAME.fullmatch(part) for part in value.split("/")):
        raise ValueError(f"{show(value)} is not a relative ROS name: such as lab/eyes, without '/' at either end")
    return value


def frame_prefix(value: str) -> str:
    """What stands before every frame of TF; "" is nothing."""
    if len(value) > 100 or not re.fullmatch(r"([A-Za-z][A-Za-z0-9_]*/?)?", value):
        raise ValueError(f"{show(value)} is no beginning of a frame: it is letters, digits and '_', such as robot1/")
    return value


def address(value: str) -> str:
    """``host:port``, left as it was written."""
    host_and_port(value)
    return value


def host_and_port(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` in its parts; ValueError with a sentence for people otherwise."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{show(address)} is not an address: write host:port, such as {DEFAULT_CORE_ADDRESS}")
    if not 1 <= int(found["port"]) <= 65535:
        raise ValueError(f"{show(address)}: the port must be 1 to 65535")
    host = found["host"] or found["v6"]
    if found["v6"]:
        IPv6Address(host)
    elif re.fullmatch(r"[0-9.]+", host):
        IPv4Address(host)
    return host, int(found["port"])


def interface(value: object) -> IPv4Address | None:
    """An IPv4 address of this machine; "auto" is None."""
    if value == "auto" or value is None:
        return None
    try:
        address = IPv4Address(value) if isinstance(value, str) else value
    except ValueError:
        address = None
    if not isinstance(address, IPv4Address):
        raise ValueError(f"{show(value)} is not an IPv4 address")
    if address.is_unspecified or address.is_multicast or address.is_reserved:
        raise ValueError(f"{show(value)} is not the address of one network interface")
    return address


def path(value: object) -> Path | None:
    """An absolute path; "auto" is None."""
    if value == "auto" or value is None or isinstance(value, Path):
        return value if isinstance(value, Path) else None
    if not isinstance(value, str) or "\0" in value or not Path(value).is_absolute():
        raise ValueError(f'{show(value)} is not an absolute path (it begins with "/") or "auto"')
    return Path(value)


def intrinsics(value: str) -> str:
    """Where a camera's intrinsics are from: "auto", "none", or a file of camera_calibration's format that is good."""
    if value in ("auto", "none"):
        return value
    if "\0" in value or not Path(value).is_absolute():
        raise ValueError(f'{show(value)} is not an absolute path (it begins with "/"), "auto" or "none"')
    from bridge import cameras  # rarely needed, and not cheap

    try:
        cameras.load(Path(value))
    except ConfigError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return value


def socket_path(value: Path | None) -> Path | None:
    """A path that a Unix socket can be bound to."""
    if value is not None and len(str(value).encode()) > _MOST_PATH_BYTES:
        raise ValueError(f"this path is too long for a socket: at most {_MOST_PATH_BYTES} bytes")
    return value


def listen(value: object) -> tuple[str, int] | None:
    """``address:port`` of this machine; "off" is None."""
    if value == "off" or value is None:
        return None
    words = f'{show(value)} is not an address to listen on: write "127.0.0.1:8420", or "off"'
    if not isinstance(value, str):
        raise ValueError(words)
    try:
        host, port = host_and_port(value)
    except ValueError as error:
        raise ValueError(words) from error
    if host == "localhost":
        host = "127.0.0.1"
    try:
        ip_address(host)
    except ValueError as error:
        raise ValueError(words) from error
    return host, port


def empty_is_none(value: object) -> object:
    """ "" is how the file says that there is no token."""
    return None if value == "" else value


def zero_is_unknown(value: object) -> object:
    """0 is how the file says that a rate is not known."""
    return None if not isinstance(value, bool) and value == 0 else value


def lower(value: object) -> object:
    """A text in lower case, anything else as it is."""
    return value.lower() if isinstance(value, str) else value


def scene_size(value: object) -> tuple[int, int]:
    """The scene image's width and height in pixels."""
    if isinstance(value, list | tuple) and len(value) == 2:
        width, height = value
        if type(width) is type(height) is int and 1 <= width <= 16384 and 1 <= height <= 16384:
            return width, height
    raise ValueError("must be [width, height] in pixels, two whole numbers from 1 to 16384")


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """A list without repetitions."""
    if len(set(values)) != len(values):
        raise ValueError("names something twice")
    return values


def oversized(tree: dict[str, Any]) -> Iterator[Fault]:
    """The whole numbers beyond TOML's 64 bits. tomllib lets them pass; Python and pydantic fail to write long ones.

    Raises RecursionError for trees that are too deep for what comes after.
    """
    waiting: list[tuple[Place, Any]] = [((), tree)]
    while waiting:  # no recursion: the tree may be as deep as the stack allowed when it was read
        place, value = waiting.pop()
        if len(place) > MOST_NESTED:
            raise RecursionError
        if isinstance(value, dict):
            waiting += [((*place, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*place, index), inner) for index, inner in enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield Fault(place, "a whole number in TOML must fit into 64 bits")


def together(tree: dict[str, Any]) -> Iterator[Fault]:
    """The faults that lie between tables: names, prefixes, addresses and sinks that occur twice.

    Works on the file's raw tree, so that they are named together with the faults inside tables; what has the wrong
    type is passed over here.
    """
    yield from _clashing_names(tree)
    yield from _clashing_sources(tree)
    yield from _unreachable_devices(tree)
    yield from _open_http(tree)
    yield from _clashing_markers(tree)
    kinds: dict[str, Place] = {}
    for place, sink in _entries(tree.get("sink"), ("sink",)):
        kind = sink.get("type")
        if kind in ("lsl", "ros2") and kinds.setdefault(kind, place) != place:
            yield Fault(
                (*place, "type"), f"{{other}} is {kind!r} already; there can be one sink of each type", kinds[kind]
            )


def marker_identity(entry: dict[str, Any]) -> tuple[str, ...] | None:
    """What a [[marker]] listens to: it is known by that. None where it has the wrong type."""
    found = [entry.get("stream"), entry.get("source_id", ""), entry.get("hostname", "")]
    texts = tuple(part for part in found if isinstance(part, str))
    return texts if len(texts) == len(found) else None


def _clashing_markers(tree: dict[str, Any]) -> Iterator[Fault]:
    streams: dict[tuple[str, ...], Place] = {}
    for place, entry in _entries(tree.get("marker"), ("marker",)):
        identity = marker_identity(entry)
        if identity is not None and streams.setdefault(identity, place) != place:
            text = f"{show(identity[0])} is listened to by {{other}} already"
            yield Fault((*place, "stream"), text, streams[identity])


def _open_http(tree: dict[str, Any]) -> Iterator[Fault]:
    """HTTP that other computers can reach has to be asked for, and to be locked."""
    http = tree.get("http")
    if not isinstance(http, dict):
        return
    token, token_file = http.get("token", "") != "", http.get("token_file", "auto") != "auto"
    if token and token_file:
        yield Fault(("http", "token_file"), "there is http.token already; set one of them")
    try:
        where = listen(http.get("listen"))
    except ValueError:
        return  # a fault of its own
    if where is None or ip_address(where[0]).is_loopback:
        return
    if http.get("allow_remote") is not True:
        words = f"{show(http['listen'])} can be reached by other computers: that needs http.allow_remote = true"
        yield Fault(("http", "listen"), words)
    elif not (token or token_file):
        yield Fault(("http", "listen"), "other computers need a token: set http.token or http.token_file")


def _entries(value: object, place: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
    if isinstance(value, list):
        yield from (((*place, index), item) for index, item in enumerate(value) if isinstance(item, dict))


def _devices(tree: dict[str, Any]) -> Iterator[tuple[Place, dict[str, Any], object]]:
    """Every device that has a name, with that name."""
    for place, source in _entries(tree.get("source"), ("source",)):
        if source.get("type") == "pupil_core":
            yield place, source, source.get("name", DEFAULT_CORE_NAME)
        elif source.get("type") == "ndsi":
            for inner, device in _entries(source.get("device"), (*place, "device")):
                yield inner, device, device.get("name")


def _clashing_names(tree: dict[str, Any]) -> Iterator[Fault]:
    names: dict[str, Place] = {}
    prefixes: dict[str, Place] = {}
    for place, device, name in _devices(tree):
        clash = isinstance(name, str) and names.setdefault(name, place) != place
        if clash:
            yield Fault((*place, "name"), f"{show(name)} is the name of {{other}} already", names[str(name)])
        if clash and "lsl_prefix" not in device:
            continue  # its prefix comes from the name: one fault, not two
        prefix = device.get("lsl_prefix", f"pupil_labs_{name}")
        if isinstance(prefix, str) and prefixes.setdefault(prefix, place) != place:
            yield Fault((*place, "lsl_prefix"), f"{show(prefix)} is the prefix of {{other}} already", prefixes[prefix])


def _clashing_sources(tree: dict[str, Any]) -> Iterator[Fault]:
    addresses: dict[tuple[str, int], Place] = {}
    networks: dict[tuple[str, int], Place] = {}
    for place, source in _entries(tree.get("source"), ("source",)):
        if source.get("type") == "pupil_core":
            value = source.get("address", DEFAULT_CORE_ADDRESS)
            try:
                host, port = host_and_port(value) if isinstance(value, str) else ("", 0)
            except ValueError:
                continue
            key = ("127.0.0.1" if host.lower() == "localhost" else host.lower(), port)
            if host and addresses.setdefault(key, place) != place:
                yield Fault((*place, "address"), f"{show(value)} is the address of {{other}} already", addresses[key])
        elif source.get("type") == "ndsi":
            interface_, beacon_port = source.get("interface", "auto"), source.get("beacon_port", DEFAULT_BEACON_PORT)
            if not isinstance(interface_, str) or not isinstance(beacon_port, int):
                continue
            if networks.setdefault((interface_, beacon_port), place) != place:
                first = networks[interface_, beacon_port]
                text = f"{show(interface_)} is watched by {{other}} already; list all its devices there"
                yield Fault((*place, "interface"), text, first)


def _unreachable_devices(tree: dict[str, Any]) -> Iterator[Fault]:
    for place, source in _entries(tree.get("source"), ("source",)):
        takers: dict[str, Place] = {}
        for inner, device in _entries(source.get("device"), (*place, "device")):
            glob = device.get("match", DEFAULT_MATCH)
            if not isinstance(glob, str):
                continue
            first = takers.get("*") or takers.get(glob)
            if first is not None:
                yield Fault(
                    (*inner, "match"), f"{show(glob)} is never reached: {{other}} takes these devices first", first
                )
            takers.setdefault(glob, inner)
