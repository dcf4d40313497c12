"""The publishing thread's queue: what goes when it is full, that order is kept, and that a dead thread is no secret."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from bridge.sinks.ros2 import worker as worker_module
from bridge.sinks.ros2.worker import Worker
from bridge.streams import Sample
from tests.sinks.ros2.lab import DEADLINE_S, MAPPED, event, quiet_lark, until

pytestmark = quiet_lark

SIZE = 10


class Output:
    """Writes down what is published and what is dropped."""

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.dropped: Counter[str] = Counter()
        self.waiting: list[Sample] = []

    def publish(self, sample: Sample, mapped: Any, host_ns: int) -> None:
        self.journal.append(str(sample.payload))

    def drop(self, reason: str) -> None:
        self.dropped[reason] += 1

    def next(self) -> Any:
        return (self.waiting.pop(0), MAPPED, 0) if self.waiting else None


class Held:
    """A worker whose thread is held until it is released."""

    def __init__(self, drop_newest: bool) -> None:
        self.journal: list[str] = []
        self.output = Output(self.journal)
        self.worker = Worker(SIZE, drop_newest)
        self._released, entered = threading.Event(), threading.Event()

        def hold() -> None:
            entered.set()
            assert self._released.wait(DEADLINE_S)

        self.worker.put_always(hold)
        assert entered.wait(DEADLINE_S)

    def sample(self, text: str) -> None:
        self.worker.put(self.output, event(text), MAPPED, 0)

    def note(self, text: str) -> Callable[[], None]:
        return lambda: self.journal.append(text)

    def end(self) -> list[str]:
        """What was done, in order."""
        self._released.set()
        self.worker.close()
        return self.journal


@pytest.fixture(params=[False, True], ids=["drop_oldest", "drop_newest"])
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    made = Held(request.param)
    yield made
    made.end()


def test_when_ros_blocks_the_loop_does_not_wait_and_the_oldest_or_the_newest_go_and_are_counted(held: Held) -> None:
    started_s = time.monotonic()
    for number in range(25):
        held.sample(str(number))
        assert held.worker.waiting <= SIZE
    assert time.monotonic() - started_s < 5.0
    assert held.output.dropped == {"queue_full": 25 - SIZE}
    kept = range(SIZE) if held.worker.drop_newest else range(25 - SIZE, 25)
    assert held.end() == [str(number) for number in kept]


def test_what_is_no_sample_is_never_dropped_for_one(held: Held) -> None:
    for number in range(3):
        held.worker.put_always(held.note(f"work {number}"))
    for number in range(100):
        held.sample(str(number))
        assert held.worker.waiting <= SIZE
    done = held.end()
    assert [each for each in done if each.startswith("work")] == ["work 0", "work 1", "work 2"]
    assert len(done) - 3 + held.output.dropped["queue_full"] == 100


@pytest.mark.parametrize("before", [0, 1, 5, SIZE, SIZE + 3])
def test_devices_that_come_and_go_do_so_in_order_however_many_samples_press_behind_them(
    held: Held, before: int
) -> None:
    """A device whose end came after its return would be gone; a stream that came before its device is an error."""
    for number in range(before):
        held.sample(f"s{number}")
    for text in ("close", "open", "stream"):
        held.worker.put_always(held.note(text))
    for number in range(before, 60):
        held.sample(f"s{number}")
    for text in ("close again", "open again"):
        held.worker.put_always(held.note(text))
    for number in range(60, 100):
        held.sample(f"s{number}")
    done = held.end()
    assert [each for each in done if not each.startswith("s") or each == "stream"] == [
        *("close", "open", "stream", "close again", "open again")
    ]
    numbers = [int(each[1:]) for each in done if each[0] == "s" and each != "stream"]
    assert numbers == sorted(numbers)
    if before and before <= SIZE and held.worker.drop_newest:
        assert done.index("close") == before  # what waits is published before its device is closed


def test_turns_of_cameras_are_taken_in_order_and_have_places_of_their_own(held: Held) -> None:
    camera = Output(held.journal)
    for number in range(SIZE):
        held.sample(str(number))
    turns = 0
    while held.worker.put_token(camera):
        camera.waiting.append(event(f"frame {turns}"))
        turns += 1
    assert turns == SIZE
    held.sample("late")
    assert [each for each in held.end() if each.startswith("frame")] == [f"frame {number}" for number in range(turns)]


def test_a_turn_whose_frame_has_gone_is_nothing(held: Held) -> None:
    assert held.worker.put_token(held.output)
    held.sample("x")
    assert held.end() == ["x"]


@pytest.mark.parametrize(("share", "places"), [(1, SIZE), (2, 2 * SIZE)])
def test_what_is_rare_has_places_of_its_own_and_no_more_than_those(held: Held, share: int, places: int) -> None:
    for number in range(SIZE):
        held.sample(str(number))
    taken = sum(held.worker.put_rare(held.note("rare"), share=share) for _ in range(100))
    assert taken == places - SIZE
    assert held.end().count("rare") == taken
    assert held.output.dropped == {}


def test_a_size_that_is_changed_holds_from_then_on(held: Held) -> None:
    held.worker.size = 3
    for number in range(10):
        held.sample(str(number))
    assert held.output.dropped == {"queue_full": 7}
    held.worker.size = 5
    for number in range(10, 20):
        held.sample(str(number))
    assert len(held.end()) == 5


def test_samples_from_the_loop_and_work_from_other_threads_are_all_done_or_counted() -> None:
    worker, journal = Worker(SIZE, False), list[str]()
    output, calls = Output(journal), list[bool]()
    threads = [
        threading.Thread(target=lambda: calls.extend(worker.call(lambda: None) for _ in range(100))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for number in range(5000):
        worker.put(output, event(str(number)), MAPPED, 0)
    for thread in threads:
        thread.join(DEADLINE_S)
    worker.close()
    assert calls == [True] * 200
    assert len(journal) + output.dropped["queue_full"] == 5000
    assert all(int(one) < int(two) for one, two in itertools.pairwise(journal))


# --- calls -----------------------------------------------------------------------------------------------------------


def test_a_call_is_done_in_its_turn_and_waited_for(held: Held) -> None:
    held.sample("before")
    answers = list[bool]()
    calling = threading.Thread(target=lambda: answers.append(held.worker.call(held.note("called"))))
    calling.start()
    until(lambda: held.worker.waiting == 2, "it is queued")
    held.sample("after")
    assert answers == []
    assert held.end() == ["before", "called", "after"]
    calling.join(DEADLINE_S)
    assert answers == [True]


def test_a_call_that_fails_says_so_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(SIZE, False)
    try:
        assert worker.call(lambda: [][0]) is False
        assert "IndexError" in caplog.text
        assert worker.call(lambda: None) is True
    finally:
        worker.close()


def test_a_call_that_has_been_given_up_is_not_done_later(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was told that a transition has failed must not find it carried out afterwards."""
    monkeypatch.setattr(worker_module, "CALL_TIMEOUT_S", 0.05)
    assert held.worker.call(held.note("too late")) is False
    assert held.end() == []


# --- its end ---------------------------------------------------------------------------------------------------------


def test_closing_does_what_still_waits(held: Held) -> None:
    for number in range(SIZE):
        held.sample(str(number))
    assert held.end() == [str(number) for number in range(SIZE)]
    assert not held.worker.alive


def test_a_thread_that_does_not_end_is_said_and_not_waited_for(
    held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "JOIN_TIMEOUT_S", 0.05)
    held.worker.close()
    assert "did not end in time" in caplog.text
    assert held.worker.alive


def test_an_error_of_a_publisher_ends_the_thread_which_is_then_known_to_be_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: died.set())
    worker = Worker(SIZE, False)
    worker.put_always(lambda: [][0])
    assert died.wait(DEADLINE_S)
    until(lambda: not worker.alive, "the thread is dead")
    worker.close()
