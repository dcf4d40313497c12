"""The configuration: TOML files -> a frozen, typed tree, or one ConfigError that names every fault at once.

``config/bridge.toml`` shows every key with its meaning. The models below are what the rest of the bridge sees. Build
them with ``load`` or ``parse``: these also check what no single table can know (names that clash, and so on).
``config_layers.py`` says how drop-ins and the environment change what a file says.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from bridge import config_checks as checks
from bridge.config_faults import Fault, Place, faults_of, report
from bridge.config_layers import Layer, Merged, drop_ins, environment
from bridge.errors import ConfigError


def load(
    path: Path, environ: Mapping[str, str] = os.environ, settings: Mapping[str, Mapping[str, object]] | None = None
) -> Config:
    """The configuration in the file ``path``, its drop-ins and the environment. Raises ConfigError.

    ``settings`` (table -> key -> value) count above all of them: what was set while the bridge runs.
    """
    files = [path, *drop_ins(path)]
    layers = [_layer(_read(file), str(file)) for file in files]
    variables, faults = environment(environ, VARIABLES)
    if oversized := list(checks.oversized(variables.tree)):
        raise ConfigError(Merged([variables]).report([], [*faults, *oversized]))
    if variables.variables:
        layers.append(variables)
    if settings and not faults:
        tree = {table: dict(keys) for table, keys in settings.items()}
        names: dict[Place, str] = {(table, key): f"{table}.{key}" for table, keys in tree.items() for key in keys}
        layers.append(Layer("what was set at run time", "", tree, names))
    return _build(layers, faults)


def parse(text: str, origin: str) -> Config:
    """The configuration in ``text``, which errors call ``origin``. Raises ConfigError with all faults, one a line."""
    return _build([_layer(text, origin)], [])


def _read(path: Path) -> str:
    try:
        # Windows editors begin a file with a byte order mark.
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: is not UTF-8 text (line {line})") from error
    except ValueError as error:  # a path with a zero byte
        raise ConfigError(f"{str(path)!r}: cannot be read: {error}") from error


def _layer(text: str, origin: str) -> Layer:
    try:
        tree = tomllib.loads(text)
        # Before all others, as pydantic must not see such numbers.
        faults = list(checks.oversized(tree))
    except ValueError as error:
        raise ConfigError(f"{origin}: is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: is nested too deeply") from error
    if faults:
        raise ConfigError(report(text, origin, faults))
    return Layer(origin, text, tree)


def _build(layers: list[Layer], faults: list[Fault]) -> Config:
    """``faults``: what is known to be wrong already with the last layer."""
    merged = Merged(layers)
    found = list(checks.together(merged.tree))
    try:
        config = Config.model_validate(merged.tree)
    except ValidationError as error:
        raise ConfigError(merged.report([*faults_of(error, Config), *found], faults)) from error
    if found or faults:
        raise ConfigError(merged.report(found, faults))
    return config


def _ns(value: float, unit_ns: int) -> int:
    return round(value * unit_ns)


DeviceName = Annotated[str, AfterValidator(checks.device_name)]
LslPrefix = Annotated[str, AfterValidator(checks.lsl_prefix)]
RateHz = Annotated[Annotated[float, Field(gt=0, le=100_000)] | None, BeforeValidator(checks.zero_is_unknown)]
LatencyMs = Annotated[float, Field(ge=-1000, le=1000)]
PingInterval = Annotated[float, Field(ge=0.1, le=60)]
CoreTopic = Literal[
    "gaze",
    "pupil",
    "fixations",
    "blinks",
    "surfaces",
    "annotation",
    "notify",
    "logging",
    "frame.world",
    "frame.eye.0",
    "frame.eye.1",
]
SurfaceName = Annotated[str, Field(min_length=1, max_length=100)]
NotificationPrefix = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,100}$")]
NdsiSensor = Literal["gaze", "event", "imu", "scene", "eyes"]


class _Table(BaseModel):
    # TOML has types of its own: nothing is converted behind the user's back ("5" is no 5, true is no 1).
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StreamConfig(_Table):
    """What is known of a stream beforehand; a rate of None is not known. ``latency_ns`` is subtracted from stamps."""

    expected_rate_hz: RateHz = None
    latency_ms: LatencyMs = 0.0

    @property
    def latency_ns(self) -> int:
        return _ns(self.latency_ms, 1_000_000)


class _Device(_Table):
    """Its ``name`` in ROS, files and status; ``lsl_prefix`` in LSL is ``pupil_labs_<name>`` where it is not set.

    ``intrinsics`` of the scene camera: "auto" (the shipped ones for its size), "none", or a file.
    ``path_asymmetry_ms``: a measured difference of the path's delays, to the device less back from it.
    """

    name: DeviceName
    lsl_prefix: LslPrefix = ""
    intrinsics: Annotated[str, AfterValidator(checks.intrinsics)] = "auto"
    path_asymmetry_ms: Annotated[float, Field(ge=-1000, le=1000)] = 0.0

    @property
    def path_asymmetry_ns(self) -> int:
        return _ns(self.path_asymmetry_ms, 1_000_000)

    @model_validator(mode="before")
    @classmethod
    def _fill_prefix(cls, table: object) -> object:
        if not isinstance(table, dict) or "lsl_prefix" in table:
            return table
        name = table.get("name", cls.model_fields["name"].default)
        # A name that is not valid is a fault of its own; the prefix must not be named beside it.
        return {
            **table,
            "lsl_prefix": f"pupil_labs_{name if isinstance(name, str) and checks.NAME.fullmatch(name) else 'x'}",
        }


def _with_event(sensors: tuple[str, ...]) -> tuple[str, ...]:
    """The echo of a round trip comes back on the event sensor: no clock without it."""
    if "event" not in sensors:
        raise ValueError('needs "event" among them: through it the device answers what time it is')
    return sensors


class NdsiDevice(_Device):
    """One Companion device that is expected: known by the name that it gives itself.

    ``sensors`` are those that are used; "scene" and "eyes" are cameras, "eyes" two of them. ``time_sync_events``: each
    minute an event by which recordings are aligned afterwards. ``compat`` "lsl-relay": LSL streams are those of that
    program, no more and no less.
    """

    match: Annotated[str, Field(min_length=1, max_length=200)] = checks.DEFAULT_MATCH
    sensors: Annotated[
        tuple[NdsiSensor, ...], Field(strict=False), AfterValidator(checks.distinct), AfterValidator(_with_event)
    ] = ("gaze", "event", "imu")
    time_sync_events: bool = True
    compat: Literal["none", "lsl-relay"] = "none"
    gaze: StreamConfig = StreamConfig()
    event: StreamConfig = StreamConfig()
    imu: StreamConfig = StreamConfig()
    scene: StreamConfig = StreamConfig()
    eyes: StreamConfig = StreamConfig()

    def matches(self, own_name: str) -> bool:
        """Whether the device that calls itself ``own_name`` is this one. Upper and lower case differ."""
        return fnmatchcase(own_name, self.match)


class NdsiSource(_Table):
    """Companion devices on one network. ``interface`` None is the first that is not loopback."""

    type: Literal["ndsi"]
    interface: Annotated[IPv4Address | None, BeforeValidator(checks.interface)] = None
    beacon_port: Annotated[int, Field(ge=1, le=65535)] = checks.DEFAULT_BEACON_PORT
    devices: Annotated[tuple[NdsiDevice, ...], Field(strict=False)] = Field(default=(), alias="device")


class PupilCoreSource(_Device):
    """One Pupil Capture or Pupil Service; ``pupil`` rates are per eye and method, those of ``eyes`` per camera.

    ``surfaces`` have their streams from the start, others from when they are first seen. ``late``: what becomes of gaze
    that comes after its reorder window. ``live``: fixations and blinks also while they last. ``compat`` "capture": LSL
    streams are those of Pupil Labs' plugin, no more and no less.
    """

    type: Literal["pupil_core"]
    address: Annotated[str, AfterValidator(checks.address)] = checks.DEFAULT_CORE_ADDRESS
    name: DeviceName = checks.DEFAULT_CORE_NAME
    scene_size: Annotated[tuple[int, int], BeforeValidator(checks.scene_size)] = (1280, 720)
    topics: Annotated[tuple[CoreTopic, ...], Field(strict=False, min_length=1), AfterValidator(checks.distinct)] = (
        "gaze",
        "pupil",
    )
    reorder_window_ms: Annotated[float, Field(ge=0, le=10_000)] = 300.0
    late: Literal["drop", "keep"] = "drop"
    live: bool = False
    surfaces: Annotated[
        tuple[SurfaceName, ...], Field(strict=False, max_length=32), AfterValidator(checks.distinct)
    ] = ()
    annotations: Literal["label", "json"] = "label"
    notifications: Annotated[
        tuple[NotificationPrefix, ...],
        Field(strict=False, min_length=1, max_length=32),
        AfterValidator(checks.distinct),
    ] = ("recording", "calibration")
    compat: Literal["none", "capture"] = "none"
    pupillometry_only: bool = False
    time_sync: bool = False
    interface: Annotated[IPv4Address | None, BeforeValidator(checks.interface)] = None  # for time_sync
    beacon_port: Annotated[int, Field(ge=1, le=65535)] = checks.DEFAULT_BEACON_PORT  # the same
    frame_format: Literal["jpeg", "gray", "bgr", "yuv"] = "jpeg"  # any other than Capture knows ends Capture
    gaze: StreamConfig = StreamConfig()
    pupil: StreamConfig = StreamConfig()
    scene: StreamConfig = StreamConfig()
    eyes: StreamConfig = StreamConfig()

    @property
    def host(self) -> str:
        return checks.host_and_port(self.address)[0]

    @property
    def port(self) -> int:
        return checks.host_and_port(self.address)[1]

    @property
    def reorder_window_ns(self) -> int:
        return _ns(self.reorder_window_ms, 1_000_000)


class LslSink(_Table):
    """Outlets of the Lab Streaming Layer; ``max_buffered_s`` is what liblsl keeps for a slow reader."""

    type: Literal["lsl"]
    max_buffered_s: Annotated[int, Field(ge=1, le=86_400)] = 360


class Ros2Sink(_Table):
    """Topics of ROS 2 under ``<namespace>/<device name>/``; ``queue_size`` in messages.

    The settings in ``AT_OPENING`` are those of the node; all others can change while it is on the network.
    """

    AT_OPENING: ClassVar = ("type", "namespace", "node_name", "lifecycle", "control")

    type: Literal["ros2"]
    namespace: Annotated[str, AfterValidator(checks.ros_namespace)] = "pupil_bridge"
    node_name: Annotated[str, AfterValidator(checks.ros_node_name)] = "pupil_bridge"
    queue_size: Annotated[int, Field(ge=10, le=100_000)] = 1000
    when_full: Literal["drop_oldest", "drop_newest"] = "drop_oldest"
    timestamp_mode: Literal["device-corrected", "device-raw", "arrival"] = "device-corrected"
    bound_warn_ms: Annotated[float, Field(gt=0, le=1_000_000)] = 10.0
    frame_prefix: Annotated[str, AfterValidator(checks.frame_prefix)] = ""
    tf: bool = True
    tf_gaze: bool = False
    lifecycle: Literal["auto", "manual"] = "auto"
    control: bool = False


class MarkerConfig(_Table):
    """One LSL stream of markers that the bridge listens to; ``source_id`` and ``hostname`` "" are any.

    ``does``: each marker is an event for the devices, or a command. ``devices`` () are all that can.
    """

    stream: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(checks.lsl_query)]
    source_id: Annotated[str, Field(max_length=200), AfterValidator(checks.lsl_query)] = ""
    hostname: Annotated[str, Field(max_length=200), AfterValidator(checks.lsl_query)] = ""
    does: Literal["events", "commands"] = "events"
    devices: Annotated[tuple[DeviceName, ...], Field(strict=False), AfterValidator(checks.distinct)] = ()

    @property
    def listens_to(self) -> tuple[str, str, str]:
        """What it is known by: where that is the same, the stream goes on."""
        return self.stream, self.source_id, self.hostname


class ClockConfig(_Table):
    """How clocks are measured, and what becomes of samples before one is locked."""

    hold_s: Annotated[float, Field(ge=0, le=60)] = 5.0
    unlocked: Literal["hold", "drop"] = "hold"
    ping_interval_s: PingInterval = 1.0
    recording_ping_interval_s: PingInterval = 10.0

    @property
    def hold_ns(self) -> int:
        return _ns(self.hold_s, 1_000_000_000)

    @property
    def ping_interval_ns(self) -> int:
        return _ns(self.ping_interval_s, 1_000_000_000)

    @property
    def recording_ping_interval_ns(self) -> int:
        return _ns(self.recording_ping_interval_s, 1_000_000_000)


class LoggingConfig(_Table):
    """What is logged, and how it is written."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(checks.lower)] = "info"
    format: Literal["auto", "text", "json", "journal"] = "auto"


class ServiceConfig(_Table):
    """Where the daemon keeps its files (None is the default place, which the daemon chooses), and when it has to end
    for having grown too much."""

    socket: Annotated[Path | None, BeforeValidator(checks.path), AfterValidator(checks.socket_path)] = None
    state_dir: Annotated[Path | None, BeforeValidator(checks.path)] = None
    memory_limit_mb: Annotated[float, Field(ge=200, le=1_000_000)] = 1000.0


Source = Annotated[NdsiSource | PupilCoreSource, Field(discriminator="type")]
Sink = Annotated[LslSink | Ros2Sink, Field(discriminator="type")]


class HttpConfig(_Table):
    """Status, metrics and control over HTTP; ``listen`` None is off. Control needs a token, the rest does not on
    loopback."""

    listen: Annotated[tuple[str, int] | None, BeforeValidator(checks.listen)] = None
    allow_remote: bool = False
    token: Annotated[
        Annotated[SecretStr, Field(min_length=checks.TOKEN_LENGTH, max_length=1000)] | None,
        BeforeValidator(checks.empty_is_none),
    ] = None
    token_file: Annotated[Path | None, BeforeValidator(checks.path)] = None

    def secret(self) -> str | None:
        """The token, read from its file where it has one. Raises ConfigError when that has none."""
        if self.token_file is None:
            return None if self.token is None else self.token.get_secret_value()
        try:
            found = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
            raise ConfigError(f"http.token_file {self.token_file} cannot be read: {reason}") from error
        if not checks.TOKEN_LENGTH <= len(found) <= 1000:
            raise ConfigError(f"http.token_file {self.token_file}: a token has {checks.TOKEN_LENGTH} to 1000 letters")
        return found


class OverloadConfig(_Table):
    """How much of one stream is taken: what a broken or hostile device sends beyond is dropped and counted."""

    flood_hz: Annotated[float, Field(ge=100, le=1_000_000)] = 2000.0


class Config(_Table):
    """The whole configuration."""

    sources: Annotated[tuple[Source, ...], Field(strict=False, min_length=1)] = Field(alias="source")
    sinks: Annotated[tuple[Sink, ...], Field(strict=False, min_length=1)] = Field(alias="sink")
    markers: Annotated[tuple[MarkerConfig, ...], Field(strict=False, max_length=16)] = Field(default=(), alias="marker")
    clock: ClockConfig = ClockConfig()
    logging: LoggingConfig = LoggingConfig()
    service: ServiceConfig = ServiceConfig()
    http: HttpConfig = HttpConfig()
    overload: OverloadConfig = OverloadConfig()


def _is_text(default: object) -> bool:
    return not isinstance(default, int | float)  # bool is an int


# The tables that the environment can set, their keys, and which of those are text.
VARIABLES = {
    table: {key: _is_text(inner.default) for key, inner in type(field.default).model_fields.items()}
    for table, field in Config.model_fields.items()
    if isinstance(field.default, _Table)
}
