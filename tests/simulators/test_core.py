"""The simulated Pupil Capture as its peers see it: a process, its sockets and its truth file.

Decodes with plain msgspec and reads the tape with code of its own. What cannot be waited for on a socket is waited for
with a deadline.
"""

from __future__ import annotations

import json
import lzma
import os
import select
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

SHORT_TAPE = Path(__file__).parents[2] / "bridge" / "simulators" / "data" / "core_short.msgpack.xz"
DEADLINE_S = 15.0
OFFSET_NS = 1000 * 10**9

decode = msgspec.msgpack.Decoder().decode


@dataclass
class Received:
    at_ns: int
    topic: str
    payload: dict[str, Any]
    frames: list[bytes] = field(repr=False)


@dataclass
class Core:
    """A running simulator and the sockets that a test opened to it."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    context: zmq.Context[zmq.Socket[bytes]]
    truth_path: Path
    kept: list[zmq.Socket[bytes]] = field(default_factory=list)

    def close(self) -> None:
        self.context.destroy(linger=0)

    def requester(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.REQ)
        socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        socket.connect(f"tcp://{self.ready['address']}")
        return socket

    def ask(self, *frames: bytes) -> str:
        with self.requester() as socket:
            socket.send_multipart(frames)
            return socket.recv().decode()

    def subscriber(self, *prefixes: bytes) -> zmq.Socket[bytes]:
        """A SUB socket whose subscriptions have arrived: a message of its own has come back through the backbone."""
        socket = self.context.socket(zmq.SUB)
        self.kept.append(socket)  # until the context closes it
        socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        socket.setsockopt(zmq.RCVHWM, 0)
        probe = f"probe.{id(socket)}".encode()
        for prefix in (*prefixes, probe):
            socket.subscribe(prefix)
        socket.connect(f"tcp://127.0.0.1:{self.ready['sub_port']}")
        deadline_s = time.monotonic() + DEADLINE_S
        seen = False
        while not seen:
            assert time.monotonic() < deadline_s, "the subscription never arrived"
            assert self.ask(probe, b"\x80") == "Message forwarded."
            again_s = time.monotonic() + 0.02
            while not seen and time.monotonic() < again_s:
                seen = socket.poll(5) != 0 and socket.recv_multipart()[0] == probe
        socket.unsubscribe(probe)
        return socket

    def truth(self) -> list[dict[str, Any]]:
        """What is in the truth file, with everything that was received so far: an answer comes after its recording."""
        if self.process.poll() is None:
            self.ask(b"v")
        return [json.loads(line) for line in self.truth_path.read_text().splitlines()]


def receive(socket: zmq.Socket[bytes]) -> Received:
    frames = socket.recv_multipart()
    return Received(time.monotonic_ns(), frames[0].decode(), decode(frames[1]), frames)


def notify(core: Core, subject: str, **fields: Any) -> None:
    payload = msgspec.msgpack.encode({"subject": subject, **fields})
    assert core.ask(f"notify.{subject}".encode(), payload) == "Message forwarded."


def receive_until(socket: zmq.Socket[bytes], wanted: Callable[[Received], bool]) -> Received:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        message = receive(socket)
        if wanted(message):
            return message
    raise AssertionError("it never came")


def collect(socket: zmq.Socket[bytes], seconds: float) -> list[Received]:
    """Everything that arrives within the time."""
    messages = []
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        if socket.poll(max(1, int(left_s * 1000))):
            messages.append(receive(socket))
    return [message for message in messages if not message.topic.startswith("probe.")]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Core]]:
    """Starts simulators; each must end with status 0 (``status``), and at a SIGTERM if it is still there."""
    with ExitStack() as stack:
        yield lambda *arguments, **keywords: launch(stack, tmp_path, *arguments, **keywords)


def launch(stack: ExitStack, folder: Path, *arguments: str, port: int = 0, status: int = 0) -> Core:
    truth = folder / "truth.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "bridge.simulators.core", "--port", str(port), "--truth", str(truth), *arguments],
        stdout=subprocess.PIPE,
    )
    stack.callback(finish, process, status)
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], DEADLINE_S)[0], "it never became ready"
    ready = json.loads(process.stdout.readline())
    core = Core(process, ready, zmq.Context(), truth)
    stack.callback(core.close)
    return core


def finish(process: subprocess.Popen[bytes], expected: int) -> None:
    process.terminate()
    try:
        status = process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert status == expected


# ---------------------------------------------------------------------------------------------- tapes, read by the test


def unpack_stream(data: bytes) -> list[Any]:
    """The tape is a stream of values: made one array of by putting an array's head before it."""
    low, high = 1, len(data)
    while low < high:  # msgspec says whether the count was too small or too large
        middle = (low + high + 1) // 2
        try:
            return list(decode(b"\xdd" + struct.pack(">I", middle) + data))
        except msgspec.DecodeError as error:
            if "trailing" in str(error):
                low = middle
            else:
                high = middle - 1
    return list(decode(b"\xdd" + struct.pack(">I", low) + data))


def read_tape(path: Path = SHORT_TAPE) -> tuple[dict[str, Any], list[tuple[float, list[bytes]]]]:
    header, *entries = unpack_stream(lzma.decompress(path.read_bytes()))
    return header, entries


def write_tape(path: Path, header: dict[str, Any], entries: list[tuple[float, list[bytes]]]) -> Path:
    values = [msgspec.msgpack.encode(value) for value in (header, *entries)]
    path.write_bytes(lzma.compress(b"".join(values), preset=0))
    return path


@pytest.fixture(scope="module")
def tape() -> tuple[dict[str, Any], list[tuple[float, list[bytes]]]]:
    return read_tape()


@pytest.fixture
def second(tmp_path: Path, tape: tuple[dict[str, Any], Any]) -> tuple[Path, int]:
    """A tape of one second without a period in its header, and how many gaze datums are on it."""
    header, entries = tape
    begin = header["monotonic"] + 4.0
    chosen = [(at, frames) for at, frames in entries if begin <= at < begin + 1]
    bare = {key: header[key] for key in ("version", "pupil_time", "monotonic")}
    gazes = sum(frames[0].startswith(b"gaze.") for _, frames in chosen)
    return write_tape(tmp_path / "second.msgpack.xz", bare, chosen), gazes


def stream_of(topic: str) -> str:
    return "gaze" if topic.startswith("gaze.") else topic


def times_in(value: Any) -> list[float]:
    """Every Pupil time anywhere in a payload."""
    if isinstance(value, dict):
        own = [value["timestamp"]] if isinstance(value.get("timestamp"), float) else []
        return own + [time_s for part in value.values() for time_s in times_in(part)]
    if isinstance(value, list):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], float):
            return [value[1]]
        return [time_s for part in value for time_s in times_in(part)]
    return []


def shape_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shape_of(part) for key, part in value.items()}
    return [shape_of(part) for part in value] if isinstance(value, list) else type(value).__name__


def datums(messages: list[Received], stream: str) -> list[Received]:
    return [message for message in messages if stream_of(message.topic) == stream]


# -------------------------------------------------------------------------------------------------------- Pupil Remote


def test_the_ready_line_tells_where_everything_is(start: Callable[..., Core]) -> None:
    core = start()
    ready = core.ready
    assert (ready["ready"], ready["kind"], ready["name"]) == (True, "core", "Pupil Capture")
    assert core.ask(b"SUB_PORT") == str(ready["sub_port"])
    assert core.ask(b"PUB_PORT") == str(ready["pub_port"])
    assert core.ask(b"v") == "3.6.14"
    assert sorted(ready["streams"]) == ["gaze", "pupil.0.2d", "pupil.0.3d", "pupil.1.2d", "pupil.1.3d"]
    assert ready["streams"]["gaze"] == pytest.approx(120, rel=1e-4)
    assert ready["streams"]["pupil.0.2d"] == pytest.approx(60, rel=1e-4)


@pytest.mark.parametrize("drift_ppm", [0, 5000])
def test_t_tells_the_pupil_time_as_python_prints_floats(start: Callable[..., Core], drift_ppm: int) -> None:
    core = start("--drift-ppm", str(drift_ppm), "--offset-s", "-12.5")
    origin_ns = core.ready["clock"]["origin_ns"]
    before_ns = time.monotonic_ns()
    reply = core.ask(b"t")
    after_ns = time.monotonic_ns()
    assert repr(float(reply)) == reply
    elapsed_ns = (float(reply) * 1e9 - origin_ns + 12.5e9) / (1 + drift_ppm * 1e-6)
    assert before_ns - 1000 <= origin_ns + elapsed_ns <= after_ns + 1000


def test_t_does_not_wait_for_the_data(start: Callable[..., Core]) -> None:
    core = start()
    core.subscriber(b"")
    round_trips_s = []
    with core.requester() as socket:
        for _ in range(300):
            sent_s = time.perf_counter()
            socket.send(b"t")
            socket.recv()
            round_trips_s.append(time.perf_counter() - sent_s)
    assert statistics.median(round_trips_s) < 1e-3


@pytest.mark.parametrize("request_", [b"x", b"SUB", b"sub_port", b"C now", b"calibrate", b" t"])
def test_what_pupil_remote_does_not_know_is_an_unknown_command(start: Callable[..., Core], request_: bytes) -> None:
    assert start().ask(request_) == "Unknown command."


def test_recording_and_calibration_are_commands_whose_effects_are_on_the_backbone(start: Callable[..., Core]) -> None:
    core = start("--topics", "none")
    backbone = core.subscriber(b"notify.")

    def effects(request_: bytes, count: int) -> list[dict[str, Any]]:
        assert core.ask(request_) == "OK"
        messages = [receive(backbone) for _ in range(count)]
        for message in messages:
            assert message.payload["topic"] == message.topic == f"notify.{message.payload['subject']}"
        return [message.payload for message in messages]

    wanted, started = effects(b"R trial 7", 2)
    assert (wanted["subject"], wanted["session_name"]) == ("recording.should_start", "trial 7")
    assert (started["subject"], started["session_name"]) == ("recording.started", "trial 7")
    wanted, stopped = effects(b"r", 2)
    assert (wanted["subject"], stopped["subject"]) == ("recording.should_stop", "recording.stopped")
    assert stopped["rec_path"] == started["rec_path"]
    assert effects(b"R", 2)[1]["rec_path"] != started["rec_path"]
    assert [effect["subject"] for effect in effects(b"C", 2)] == ["calibration.should_start", "calibration.started"]
    assert [effect["subject"] for effect in effects(b"c", 6)] == [
        "calibration.should_stop",
        "calibration.stopped",
        "start_plugin",
        "calibration.setup.v2",
        "calibration.successful",
        "calibration.result.v2",
    ]
    # Nothing runs now, so a second stop has no effect but itself.
    assert [effect["subject"] for effect in effects(b"c", 1)] == ["calibration.should_stop"]


def test_a_multipart_request_goes_to_the_backbone_whole(start: Callable[..., Core]) -> None:
    core = start("--topics", "none")
    backbone = core.subscriber(b"annotation", b"notify.")
    frames = [b"annotation", msgspec.msgpack.encode({"label": "go", "timestamp": 1.0}), b"raw", b""]
    assert core.ask(*frames) == "Message forwarded."
    assert backbone.recv_multipart() == frames
    should_start = {"subject": "recording.should_start", "session_name": "s"}
    assert core.ask(b"notify.recording.should_start", msgspec.msgpack.encode(should_start))
    assert receive(backbone).topic == "notify.recording.should_start"
    assert receive(backbone).payload["session_name"] == "s"


def test_every_request_is_logged_on_the_backbone_as_capture_logs_it(
    start: Callable[..., Core], tape: tuple[Any, Any]
) -> None:
    core = start("--topics", "none")
    backbone = core.subscriber(b"logging.debug")
    reply = core.ask(b"t")
    record = receive_until(backbone, lambda message: "'t'" in message.payload["msg"]).payload
    recorded = next(decode(frames[1]) for _, frames in tape[1] if frames[0] == b"logging.debug")
    assert record["msg"] == f"Request: 't', Response: '{reply}'"
    assert shape_of(record) == shape_of(recorded)
    assert list(record) == list(recorded)
    core.ask(b"T 99.5")
    record = receive_until(backbone, lambda message: "'T" in message.payload["msg"]).payload
    assert record["msg"] == "Request: 'T 99.5', Response: 'Timesync successful.'"


@pytest.mark.parametrize("request_", [b"", b"\xff\xfe"])
def test_an_empty_or_undecodable_request_ends_pupil_remote_but_not_the_backbone(
    start: Callable[..., Core], request_: bytes
) -> None:
    core = start()
    backbone = core.subscriber(b"gaze.")
    for frame in (request_, b"t"):
        with core.requester() as socket:
            socket.send(frame)
            assert socket.poll(300) == 0
    newest = receive_until(
        backbone, lambda message: time.monotonic_ns() - message.at_ns < 10**8 and not backbone.poll(0)
    )
    assert newest.topic.startswith("gaze.")


def test_a_taken_port_makes_pupil_remote_take_another(start: Callable[..., Core]) -> None:
    first = start()
    taken = int(first.ready["address"].rpartition(":")[2])
    second_ = start(port=taken)
    assert second_.ready["address"] != first.ready["address"]
    assert second_.ask(b"SUB_PORT") == str(second_.ready["sub_port"]) != str(first.ready["sub_port"])


# -------------------------------------------------------------------------------------------------------- the backbone


def test_other_programs_publish_to_all_subscribers(start: Callable[..., Core]) -> None:
    core = start("--topics", "none")
    subscribers = [core.subscriber(b"remote_annotation", b"notify."), core.subscriber(b"remote_annotation", b"notify.")]
    # An XPUB is told of the subscriptions, so that nothing is sent before they are there.
    with core.context.socket(zmq.XPUB) as publisher:
        publisher.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        publisher.connect(f"tcp://127.0.0.1:{core.ready['pub_port']}")
        wanted = {b"\x01remote_annotation", b"\x01notify."}
        while wanted:
            wanted.discard(publisher.recv())
        publisher.send_multipart([b"remote_annotation", b"\x80", b"raw"])
        publisher.send_multipart([b"notify.calibration.should_start", b"\xc1 no msgpack"])
        for subscriber in subscribers:
            assert subscriber.recv_multipart() == [b"remote_annotation", b"\x80", b"raw"]
            assert subscriber.recv_multipart() == [b"notify.calibration.should_start", b"\xc1 no msgpack"]
            assert receive(subscriber).topic == "notify.calibration.started"


def test_only_the_topics_asked_for_are_published(start: Callable[..., Core]) -> None:
    core = start("--topics", "gaze.,pupil.1.3d")
    messages = collect(core.subscriber(b""), 1.0)
    streams = {stream_of(message.topic) for message in messages if not message.topic.startswith("logging.")}
    assert streams == {"gaze", "pupil.1.3d"} == set(core.ready["streams"])


# ------------------------------------------------------------------------------------------------------------ the tape


def test_the_shipped_tape_is_small_and_holds_everything(tape: tuple[Any, Any]) -> None:
    header, entries = tape
    topics = Counter(frames[0].decode() for _, frames in entries)
    assert SHORT_TAPE.stat().st_size < 500_000
    assert set(topics) == {
        *("gaze.3d.0.", "gaze.3d.1.", "gaze.3d.01.", "pupil.0.2d", "pupil.0.3d", "pupil.1.2d", "pupil.1.3d"),
        *("blinks", "fixations", "surfaces.Surface 1", "logging.debug"),
    }
    stamps = [decode(frames[1])["timestamp"] for _, frames in entries if frames[0].startswith(b"gaze.")]
    assert any(after < before for before, after in pairwise(stamps))
    by_second = Counter(int(stamp - header["pupil_time"]) for stamp in stamps)
    assert all(118 <= count <= 122 for count in by_second.values())


def test_a_loop_of_the_shipped_tape_is_the_tape_with_true_stamps_and_its_own_ages(
    start: Callable[..., Core], tape: tuple[Any, Any]
) -> None:
    header, entries = tape
    # A ring: what arrived after the end of the loop on the tape arrives early in each turn of it.
    on_tape: dict[str, list[tuple[float, float, list[float]]]] = defaultdict(list)
    for at_s, frames in entries:
        if frames[0].startswith((b"gaze.", b"pupil.")):
            datum = decode(frames[1])
            arrival_s = at_s - header["monotonic"]
            age_s = arrival_s - (datum["timestamp"] - header["pupil_time"])
            measured = [*datum["norm_pos"], datum["confidence"]]
            on_tape[stream_of(frames[0].decode())].append((arrival_s % header["loop_s"], age_s, measured))
    for ring in on_tape.values():
        ring.sort()
    core = start("--drift-ppm", "50")
    messages = collect(core.subscriber(b""), header["loop_s"] + 1.0)
    truth = core.truth()
    origin_ns, loop_ns = core.ready["clock"]["origin_ns"], round(header["loop_s"] * 1e9)

    host_of: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line in truth:
        host_of[line["stream"]][line["device_ns"]].append(line["host_ns"])
        elapsed_ns = line["host_ns"] - origin_ns
        assert abs(line["device_ns"] - (origin_ns + OFFSET_NS + elapsed_ns * 1.00005)) < 500
    assert [line["sequence"] for line in truth if line["stream"] == "gaze"] == list(
        range(sum(line["stream"] == "gaze" for line in truth))
    )

    late_ms = []
    for stream in core.ready["streams"]:
        received = datums(messages, stream)
        truth_of_stream = [line for line in truth if line["stream"] == stream]
        # Exact, in order, and none missing: what was received is one stretch of what the truth says.
        stamps = [round(message.payload["timestamp"] * 1e9) for message in received]
        all_stamps = [line["device_ns"] for line in truth_of_stream]
        first = next(i for i in range(len(all_stamps)) if all_stamps[i : i + len(stamps)] == stamps)
        # A loop has as many datums as the tape, and each comes again one loop later.
        ring = on_tape[stream]
        count = len(ring)
        assert len(received) > count
        for line, again in zip(truth_of_stream, truth_of_stream[count:], strict=False):
            assert again["host_ns"] - line["host_ns"] == loop_ns
            assert again["payload"] == line["payload"]
        for message, line in zip(received, truth_of_stream[first:], strict=False):
            datum = message.payload
            assert line["payload"] == [*datum["norm_pos"], datum["confidence"]]
            assert line["sent"]
            _, age_s, measured = ring[line["sequence"] % count]
            assert line["payload"] == measured
            late_ms.append((message.at_ns - line["host_ns"]) * 1e-6 - age_s * 1e3)
            # base_data carries the very stamps under which the pupils went out.
            if stream == "gaze" and message.at_ns - received[0].at_ns > 10**9:
                for base in datum["base_data"]:
                    assert round(base["timestamp"] * 1e9) in host_of[base["topic"]]
    assert min(late_ms) > -0.01
    assert statistics.median(late_ms) < 2.0

    # Every other time in every payload was moved too: nothing is far from now.
    for message in messages:
        for time_s in times_in(message.payload):
            assert -0.1 < message.at_ns * 1e-9 + 1000 - time_s < 3.0, message.topic


def test_pupils_are_in_order_and_evenly_spaced_over_the_joint_and_gaze_goes_back_no_further_than_on_the_tape(
    start: Callable[..., Core], tape: tuple[Any, Any]
) -> None:
    header, entries = tape
    core = start("--duration", str(header["loop_s"] * 1.2))
    assert core.process.wait(DEADLINE_S + header["loop_s"]) == 0
    by_stream: dict[str, list[int]] = defaultdict(list)
    for line in core.truth():
        by_stream[line["stream"]].append(line["host_ns"])
    for stream in ("pupil.0.2d", "pupil.0.3d", "pupil.1.2d", "pupil.1.3d"):
        assert all(14e6 < after - before < 19e6 for before, after in pairwise(by_stream[stream]))
    stamps = [decode(frames[1])["timestamp"] for _, frames in entries if frames[0].startswith(b"gaze.")]
    furthest_ns = min(after - before for before, after in pairwise(stamps)) * 1e9
    assert min(after - before for before, after in pairwise(by_stream["gaze"])) >= furthest_ns - 10
    in_order = sorted(by_stream["gaze"])[60:-60]  # what the matcher still held back at either end is not there
    assert all(after - before < 25e6 for before, after in pairwise(in_order))


def test_any_tape_loops_without_pupils_going_back_and_with_fixations_counted_on(
    start: Callable[..., Core], second: tuple[Path, int]
) -> None:
    path, gazes = second
    core = start("--tape", str(path))
    assert core.ready["streams"]["gaze"] * core.ready["loop_s"] == pytest.approx(gazes)
    messages = collect(core.subscriber(b""), 3.5 * core.ready["loop_s"])
    truth = core.truth()
    for stream in set(core.ready["streams"]) - {"gaze"}:
        stamps = [line["host_ns"] for line in truth if line["stream"] == stream]
        assert all(before < after for before, after in pairwise(stamps))
    loop_ns = round(core.ready["loop_s"] * 1e9)
    gaze = [line["host_ns"] for line in truth if line["stream"] == "gaze"]
    assert all(after - before == loop_ns for before, after in zip(gaze, gaze[gazes:], strict=False))
    identities = [message.payload["id"] for message in messages if message.topic == "fixations"]
    assert identities == sorted(identities)
    assert len(set(identities)) >= 3


@pytest.mark.parametrize(
    "content", [b"no xz", lzma.compress(b"\x81\xa7version"), lzma.compress(b"\xc1"), lzma.compress(b""), None]
)
def test_a_file_that_is_no_tape_is_one_clear_line_and_status_78(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tape"
    if content is not None:
        path.write_bytes(content)
    result = subprocess.run(
        [sys.executable, "-m", "bridge.simulators.core", "--port", "0", "--tape", str(path)],
        capture_output=True,
        timeout=DEADLINE_S,
        text=True,
    )
    assert (result.returncode, result.stdout) == (78, "")
    assert len(result.stderr.splitlines()) == 1
    assert str(path) in result.stderr


# ----------------------------------------------------------------------------------------------- clock, loss and delay


def test_the_stamps_drift_against_the_host_by_what_was_asked(
    start: Callable[..., Core], second: tuple[Path, int]
) -> None:
    core = start("--tape", str(second[0]), "--drift-ppm", "-5000", "--offset-s", "3", "--topics", "pupil.0.2d")
    backbone = core.subscriber(b"pupil.")
    first = receive(backbone).payload["timestamp"]
    last = receive_until(backbone, lambda message: message.payload["timestamp"] > first + 2).payload["timestamp"]
    host_of = {line["device_ns"]: line["host_ns"] for line in core.truth()}
    elapsed_ns = host_of[round(last * 1e9)] - host_of[round(first * 1e9)]
    assert (last - first) * 1e9 == pytest.approx(elapsed_ns * 0.995, abs=3)


def test_a_step_holds_for_what_is_captured_after_it(start: Callable[..., Core]) -> None:
    core = start()
    backbone = core.subscriber(b"gaze.3d.01.", b"pupil.0.2d")
    receive(backbone)
    assert core.ask(b"T soon") == "'soon' cannot be converted to float."
    before_ns = time.monotonic_ns()
    assert core.ask(b"T 5.0") == "Timesync successful."
    after_ns = time.monotonic_ns()
    assert 5.0 <= float(core.ask(b"t")) < 5.0 + DEADLINE_S
    messages = []
    while not any(m.topic.startswith("gaze") and 5.0 <= m.payload["timestamp"] < 100 for m in messages):
        messages.append(receive(backbone))
    new = [m.payload["timestamp"] < 100 for m in messages]
    # Gaze is older than pupils when it arrives: some of it in the old timebase comes after a pupil in the new one.
    first_new = new.index(True)
    assert messages[first_new].topic == "pupil.0.2d"
    assert any(not n and m.topic == "gaze.3d.01." for n, m in zip(new[first_new:], messages[first_new:], strict=True))
    host_of = {line["device_ns"]: line["host_ns"] for line in core.truth()}
    for message in messages:
        stamp_ns = round(message.payload["timestamp"] * 1e9)
        host_ns = host_of[stamp_ns]
        if stamp_ns < 100e9:
            assert before_ns - 1 <= host_ns - (stamp_ns - 5e9) <= after_ns + 1
        else:
            assert stamp_ns == host_ns + OFFSET_NS
            assert host_ns <= after_ns


def test_lost_datums_are_in_the_truth_and_nowhere_else(start: Callable[..., Core]) -> None:
    core = start("--loss", "0.3", "--seed", "4")
    messages = collect(core.subscriber(b""), 3.0)
    truth = core.truth()
    kept = [line for line in truth if line["stream"] not in core.ready["streams"] and "frame." not in line["stream"]]
    assert {"fixations", "surfaces.Surface 1"} <= {line["stream"] for line in kept}
    assert all(line["sent"] for line in kept)
    lossy = [line["sent"] for line in truth if line["stream"] in core.ready["streams"]]
    assert 0.2 < lossy.count(False) / len(lossy) < 0.4
    for stream in core.ready["streams"]:
        stamps = [round(message.payload["timestamp"] * 1e9) for message in datums(messages, stream)]
        sent = [line["device_ns"] for line in truth if line["stream"] == stream and line["sent"]]
        assert any(sent[i : i + len(stamps)] == stamps for i in range(len(sent)))
    assert sum(message.topic.startswith("surfaces.") for message in messages) > 50


def test_the_network_delays_each_direction_by_what_was_asked(start: Callable[..., Core]) -> None:
    core = start("--synthesise", "--delay-ms", "20", "--asymmetry-ms", "30", "--jitter-ms", "1")
    with core.requester() as socket:
        for _ in range(5):
            before_ns = time.monotonic_ns()
            socket.send(b"t")
            told_ns = float(socket.recv()) * 1e9 - OFFSET_NS
            after_ns = time.monotonic_ns()
            assert told_ns - before_ns >= 20e6 - 1000
            assert after_ns - told_ns >= 50e6 - 1000
    ages_ms = [
        (message.at_ns + OFFSET_NS) * 1e-6 - message.payload["timestamp"] * 1e3
        for message in collect(core.subscriber(b"gaze."), 1.0)
    ]
    assert min(ages_ms) >= 35 + 50 - 0.01


def test_synthesised_datums_look_like_recorded_ones_and_come_in_order(
    start: Callable[..., Core], tape: tuple[Any, Any]
) -> None:
    core = start("--synthesise", "--gaze-rate", "200", "--pupil-rate", "90")
    assert core.ready["streams"]["gaze"] == pytest.approx(200)
    assert core.ready["streams"]["pupil.1.3d"] == pytest.approx(90, abs=0.1)
    messages = collect(core.subscriber(b"gaze.", b"pupil."), 2.0)
    recorded = {frames[0].decode(): frames[1] for _, frames in tape[1]}
    truth = core.truth()
    for stream in core.ready["streams"]:
        received = datums(messages, stream)
        stamps = [round(message.payload["timestamp"] * 1e9) for message in received]
        step_ns = 1e9 / core.ready["streams"][stream]
        assert all(abs(after - before - step_ns) < 1000 for before, after in pairwise(stamps))
        assert set(stamps) <= {line["device_ns"] for line in truth if line["stream"] == stream}
        for message in received:
            assert len(message.frames[1]) == len(recorded[message.topic])
            assert shape_of(message.payload) == shape_of(decode(recorded[message.topic]))
    pupils = {(m.topic, m.payload["timestamp"]) for m in messages if m.topic.startswith("pupil.")}
    for message in datums(messages, "gaze")[50:]:
        assert all((base["topic"], base["timestamp"]) in pupils for base in message.payload["base_data"])


# ------------------------------------------------------------------------------------------------------------- process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(start: Callable[..., Core], number: int) -> None:
    core = start()
    core.subscriber(b"")
    os.kill(core.process.pid, number)
    assert core.process.wait(DEADLINE_S) == 0


def test_the_duration_ends_it_with_status_0(start: Callable[..., Core]) -> None:
    began_s = time.monotonic()
    assert start("--duration", "1").process.wait(DEADLINE_S) == 0
    assert time.monotonic() - began_s >= 1
