"""ZeroMQ on the event loop: its descriptor is edge-triggered, so what is not drained now may never be seen again."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from bridge.sources.zmqio import BATCH, ZmqReader, pipe
from tests.sources.zre_peer import until

MANY = 10_000


class Context(zmq.Context[Any]):
    """Keeps its sockets, which are closed with it."""

    kept: list[zmq.Socket[bytes]]


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    made.kept = []
    yield made
    made.destroy(0)


def pair(context: Context, ours: int, theirs: int) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Two connected sockets with room for everything."""
    one, other = context.socket(ours), context.socket(theirs)
    context.kept += one, other
    for each in (one, other):
        each.set_hwm(0)
        each.setsockopt(zmq.LINGER, 0)
    port = one.bind_to_random_port("tcp://127.0.0.1")
    other.connect(f"tcp://127.0.0.1:{port}")
    return one, other


async def test_bursts_of_ten_thousand_messages_all_arrive_in_order(context: Context) -> None:
    pull, push = pair(context, zmq.PULL, zmq.PUSH)
    got: list[bytes] = []
    reader = ZmqReader(asyncio.get_running_loop(), pull, lambda frames: got.append(frames[0]))
    for burst in range(1, 4):
        for number in range(MANY):
            push.send(b"%d" % number)
        await until(lambda count=burst * MANY: len(got) == count, f"all messages of burst {burst}")
    assert got == [b"%d" % number for number in range(MANY)] * 3
    reader.close()


async def test_messages_that_came_before_the_reader_was_made_arrive(context: Context) -> None:
    pull, push = pair(context, zmq.PULL, zmq.PUSH)
    for number in range(3 * BATCH):
        push.send(b"%d" % number)
    await until(lambda: pull.getsockopt(zmq.EVENTS) & zmq.POLLIN, "something has come")
    got: list[list[bytes]] = []
    reader = ZmqReader(asyncio.get_running_loop(), pull, got.append)
    await until(lambda: len(got) == 3 * BATCH, "all of it")
    reader.close()


async def test_frames_of_a_message_arrive_together(context: Context) -> None:
    pull, push = pair(context, zmq.PULL, zmq.PUSH)
    got: list[list[bytes]] = []
    reader = ZmqReader(asyncio.get_running_loop(), pull, got.append)
    push.send_multipart([b"a", b"", b"c" * 100_000])
    await until(lambda: got, "the message")
    assert got == [[b"a", b"", b"c" * 100_000]]
    reader.close()


async def test_other_work_of_the_loop_goes_on_during_a_burst(context: Context) -> None:
    pull, push = pair(context, zmq.PULL, zmq.PUSH)
    for number in range(MANY):
        push.send(b"%d" % number)
    got = 0
    turns: list[int] = []

    def take(frames: list[bytes]) -> None:
        nonlocal got
        got += 1

    async def other_work() -> None:
        while got < MANY:
            turns.append(got)
            await asyncio.sleep(0)

    reader = ZmqReader(asyncio.get_running_loop(), pull, take)
    async with asyncio.timeout(20):
        await other_work()
    between = [after - before for before, after in zip(turns, [*turns[1:], got], strict=True)]
    assert max(between) <= 2 * BATCH, "the reader and the edge of its descriptor in one turn at most"
    assert len(turns) > MANY / (2 * BATCH)
    reader.close()


async def test_two_readers_share_the_loop(context: Context) -> None:
    (busy_pull, busy_push), (pull, push) = (pair(context, zmq.PULL, zmq.PUSH) for _ in range(2))
    busy: list[list[bytes]] = []
    seen_after: list[int] = []
    loop = asyncio.get_running_loop()
    for number in range(MANY):
        busy_push.send(b"%d" % number)
    push.send(b"only one")
    await until(lambda: pull.getsockopt(zmq.EVENTS) & zmq.POLLIN, "both have something")
    readers = [ZmqReader(loop, busy_pull, busy.append), ZmqReader(loop, pull, lambda _: seen_after.append(len(busy)))]
    await until(lambda: len(busy) == MANY, "all of the busy one")
    assert seen_after
    assert seen_after[0] <= 3 * BATCH
    for reader in readers:
        reader.close()


async def test_a_callback_may_close_its_reader_and_hears_nothing_more(context: Context) -> None:
    pull, push = pair(context, zmq.PULL, zmq.PUSH)
    got: list[bytes] = []

    def take(frames: list[bytes]) -> None:
        got.append(frames[0])
        if frames[0] == b"5":
            reader.close()

    for number in range(3 * BATCH):
        push.send(b"%d" % number)
    await until(lambda: pull.getsockopt(zmq.EVENTS) & zmq.POLLIN, "something has come")
    reader = ZmqReader(asyncio.get_running_loop(), pull, take)
    await until(lambda: pull.closed, "the callback has closed it")
    for _ in range(10):
        await asyncio.sleep(0)
    assert got == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_a_reader_may_be_closed_by_another_ones_callback_in_the_same_turn(context: Context) -> None:
    (one, to_one), (two, to_two) = (pair(context, zmq.PULL, zmq.PUSH) for _ in range(2))
    got: list[str] = []
    readers: list[ZmqReader] = []

    def take(name: str) -> Any:
        def taken(frames: list[bytes]) -> None:
            got.append(name)
            for reader in readers:
                reader.close()

        return taken

    to_one.send(b"x")
    to_two.send(b"x")
    await until(lambda: all(s.getsockopt(zmq.EVENTS) & zmq.POLLIN for s in (one, two)), "both have something")
    readers += [ZmqReader(asyncio.get_running_loop(), s, take(n)) for s, n in ((one, "one"), (two, "two"))]
    await until(lambda: one.closed and two.closed, "both are closed")
    for _ in range(10):
        await asyncio.sleep(0)
    assert got == ["one"]


async def test_closing_twice_and_poking_after_it_do_nothing(context: Context) -> None:
    pull, _ = pair(context, zmq.PULL, zmq.PUSH)
    got: list[list[bytes]] = []
    reader = ZmqReader(asyncio.get_running_loop(), pull, got.append)
    reader.close()
    reader.close()
    reader.poke()
    for _ in range(10):
        await asyncio.sleep(0)
    assert got == []
    assert pull.closed


async def test_a_closed_readers_descriptor_can_be_used_again_at_once(context: Context) -> None:
    loop = asyncio.get_running_loop()
    for number in range(100):
        pull, push = pair(context, zmq.PULL, zmq.PUSH)
        got: list[list[bytes]] = []
        reader = ZmqReader(loop, pull, got.append)
        push.send(b"%d" % number)
        await until(lambda got=got: got, f"the message of socket {number}")
        reader.close()
        push.close(0)


async def test_what_arrived_while_something_was_sent_is_seen_after_a_poke(context: Context) -> None:
    """Sending looks at the mailbox of the socket too, and can swallow the edge of an arrival."""
    dealer, router = pair(context, zmq.DEALER, zmq.ROUTER)
    got: list[list[bytes]] = []
    reader = ZmqReader(asyncio.get_running_loop(), dealer, got.append)
    dealer.send(b"hello")
    identity = router.recv_multipart()[0]
    for round_trip in range(1, 201):
        router.send_multipart([identity, b"reply"])
        # The reply is there before the descriptor is looked at, and the send below takes its edge away.
        deadline = time.monotonic() + 5
        while not dealer.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            assert time.monotonic() < deadline
        dealer.send_multipart([b"request"], zmq.NOBLOCK)
        pass
        await until(lambda count=round_trip: len(got) == count, f"reply {round_trip}")
    reader.close()


async def test_pokes_add_up_to_one_look(context: Context) -> None:
    pull, push = pair(context, zmq.PULL, zmq.PUSH)
    got: list[list[bytes]] = []
    reader = ZmqReader(asyncio.get_running_loop(), pull, got.append)
    for _ in range(1000):
        pass
    push.send(b"x")
    await until(lambda: got, "the message")
    assert len(got) == 1
    reader.close()


async def test_a_reader_costs_nothing_while_nothing_comes(context: Context) -> None:
    pull, push = pair(context, zmq.PULL, zmq.PUSH)
    got: list[list[bytes]] = []
    reader = ZmqReader(asyncio.get_running_loop(), pull, got.append)
    push.send(b"x")
    await until(lambda: got, "the message")
    before = time.process_time()
    await asyncio.sleep(0.3)
    assert time.process_time() - before < 0.1
    reader.close()


async def test_closing_leaves_no_file_open(context: Context) -> None:
    loop = asyncio.get_running_loop()

    def use() -> None:
        pull, push = pair(context, zmq.PULL, zmq.PUSH)
        ZmqReader(loop, pull, lambda _: None).close()
        push.close(0)

    use()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        use()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before, "all files are closed")


def test_a_pipe_joins_two_threads_and_is_closed_by_its_context_when_a_thread_did_not() -> None:
    context: zmq.Context[Any] = zmq.Context()
    ours, theirs = pipe(context)

    def echo() -> None:
        theirs.send_multipart([b"you said", theirs.recv()])  # and dies without closing

    thread = threading.Thread(target=echo)
    thread.start()
    ours.send(b"hello")
    assert ours.recv_multipart() == [b"you said", b"hello"]
    thread.join()
    context.destroy(0)
    assert ours.closed
    assert theirs.closed


def test_a_pipe_that_nobody_reads_is_bounded(context: Context) -> None:
    ours, theirs = ends = pipe(context)
    context.kept += ends
    sent = 0
    while sent < 100_000 and ours.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
        ours.send(b"x", zmq.NOBLOCK)
        sent += 1
    assert 1000 <= sent <= 2000
    with pytest.raises(zmq.Again):
        ours.send(b"x", zmq.NOBLOCK)
    assert theirs.recv() == b"x"
