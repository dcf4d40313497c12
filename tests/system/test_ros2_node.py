"""The daemon's ROS node from outside: its states, parameters and services, while two simulated eye trackers stream."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from sensor_msgs.msg import TimeReference
from std_srvs.srv import Trigger

from tests.sinks.ros2.lab import Peer, is_there, quiet_lark
from tests.system.harness import Bridge, Process, bridge, free_port, simulator, truth, wait_until

pytestmark = [pytest.mark.slow, quiet_lark]

NODE = "/pupil_bridge/pupil_bridge"
CONFIG = """
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
name = "companion"
lsl_prefix = "pupil_labs"
[[source]]
type = "pupil_core"
address = "{core_address}"
name = "core"
lsl_prefix = "pupil_capture"
[[sink]]
type = "lsl"
[[sink]]
type = "ros2"
"""
STEPS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "shutdown": Transition.TRANSITION_ACTIVE_SHUTDOWN,
}
TO_STATE = {
    "active": [],
    "inactive": ["deactivate"],
    "unconfigured": ["deactivate", "cleanup"],
    "finalized": ["shutdown"],
}


@contextmanager
def trackers(tmp_path: Path, *companion: str) -> Iterator[tuple[Process, str]]:
    """Both simulators; the companion's process, and the daemon's configuration for them."""
    port = free_port(socket.SOCK_DGRAM)
    with (
        simulator("companion", tmp_path, "--beacon-port", str(port), *companion) as (phone, _),
        simulator("core", tmp_path, "--port", "0", "--truth", str(tmp_path / "core.jsonl")) as (_, ready),
    ):
        yield phone, CONFIG.format(beacon_port=port, core_address=ready["address"])


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def change(peer: Peer, step: str) -> bool:
    done: bool = peer.call(ChangeState, f"{NODE}/change_state", transition=Transition(id=STEPS[step])).success
    return done


def state(peer: Peer) -> str:
    label: str = peer.call(GetState, f"{NODE}/get_state").current_state.label
    return label


def gaze(daemon: Bridge, device: str = "companion") -> dict[str, Any]:
    return daemon.stream(device, "gaze")


def lsl_goes_on(daemon: Bridge, samples: int = 60) -> None:
    for device in ("companion", "core"):
        before = gaze(daemon, device)["samples_out"]["lsl"]
        wait_until(
            lambda device=device, before=before: gaze(daemon, device)["samples_out"]["lsl"] > before + samples,
            f"LSL of {device} goes on",
        )


def ros_of(daemon: Bridge) -> dict[str, Any]:
    (found,) = [sink for sink in daemon.status()["sink_status"] if sink["name"] == "ros2"]
    return dict(found)


# --- states ----------------------------------------------------------------------------------------------------------


def test_the_node_goes_round_ten_times_while_lsl_streams_and_leaks_nothing(tmp_path: Path, peer: Peer) -> None:
    with trackers(tmp_path) as (_, config), bridge(tmp_path, config) as daemon:
        daemon.wait_locked("companion", "core")
        process = dict[str, Any]()
        for number in range(12):
            assert change(peer, "deactivate")
            assert not change(peer, "configure")
            assert change(peer, "cleanup")
            assert not change(peer, "activate")
            assert ros_of(daemon)["state"] == "unconfigured"
            assert change(peer, "configure")
            assert change(peer, "activate")
            before = gaze(daemon)["samples_out"]["ros2"]
            wait_until(
                lambda before=before: gaze(daemon)["samples_out"]["ros2"] > before + 20, "samples are published again"
            )
            if number == 1:
                process = daemon.status()["process"]
        after = daemon.status()["process"]
        assert after["threads"] <= process["threads"]
        assert after["open_files"] <= process["open_files"] + 3  # connections of the control socket
        lsl_goes_on(daemon)
        assert daemon.process.stop() == 0
        assert "Traceback" not in daemon.process.errors()


def test_while_inactive_nothing_is_published_and_the_samples_are_counted_and_lsl_goes_on(
    tmp_path: Path, peer: Peer
) -> None:
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import PointStamped

    with trackers(tmp_path) as (_, config), bridge(tmp_path, config) as daemon:
        daemon.wait_locked("companion", "core")
        heard = [
            peer.listen(PointStamped, "/pupil_bridge/companion/gaze/pixel"),
            peer.listen(TimeReference, "/pupil_bridge/companion/time_reference"),
            peer.listen(DiagnosticArray, "/diagnostics"),
        ]
        wait_until(lambda: all(heard), "all is heard")
        assert change(peer, "deactivate")
        dropped = gaze(daemon)["dropped"].get("ros2_inactive", 0)
        wait_until(lambda: gaze(daemon)["dropped"].get("ros2_inactive", 0) > dropped + 60, "what is lost is counted")
        counts, published = [len(each) for each in heard], gaze(daemon)["samples_out"]["ros2"]
        lsl_goes_on(daemon, 300)
        assert [len(each) for each in heard] == counts
        assert gaze(daemon)["samples_out"]["ros2"] == published
        assert state(peer) == "inactive" == ros_of(daemon)["state"]
        assert change(peer, "activate")
        wait_until(lambda: all(len(each) > count for each, count in zip(heard, counts, strict=True)), "all is heard")


def test_a_node_that_is_to_wait_has_no_topics_until_it_is_told(tmp_path: Path, peer: Peer) -> None:
    topic = "/pupil_bridge/companion/gaze/pixel"
    with trackers(tmp_path) as (_, config), bridge(tmp_path, f'{config}lifecycle = "manual"\n') as daemon:
        daemon.wait_locked("companion", "core")
        assert state(peer) == "unconfigured"
        assert peer.node.count_publishers(topic) == 0
        lsl_goes_on(daemon)
        assert gaze(daemon)["samples_out"]["ros2"] == 0
        assert change(peer, "configure")
        wait_until(lambda: peer.node.count_publishers(topic), "the topic is there")
        assert change(peer, "activate")
        wait_until(lambda: gaze(daemon)["samples_out"]["ros2"] > 20, "it is published")
        assert change(peer, "deactivate")
        assert change(peer, "cleanup")
        wait_until(lambda: not peer.node.count_publishers(topic), "the topic has gone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wanted", TO_STATE)
def test_a_signal_ends_the_daemon_in_time_whatever_state_the_node_is_in(
    tmp_path: Path, peer: Peer, wanted: str, number: signal.Signals
) -> None:
    with trackers(tmp_path) as (_, config), bridge(tmp_path, config) as daemon:
        daemon.wait_locked("companion", "core")
        for step in TO_STATE[wanted]:
            assert change(peer, step)
        assert state(peer) == wanted
        status = daemon.status()
        (outlets,) = [sink["outlets"] for sink in status["sink_status"] if sink["name"] == "lsl"]
        children = psutil.Process(status["process"]["pid"]).children(recursive=True)
        started_s = time.monotonic()
        daemon.process.popen.send_signal(number)
        assert daemon.process.popen.wait(30) == 0
        assert time.monotonic() - started_s < 2.0 + 0.03 * outlets
        assert not [child for child in children if child.is_running()]
        log = daemon.process.errors()
    assert "Traceback" not in log
    assert "did not end in time" not in log
    assert log.rstrip().endswith("stopped")
    wait_until(lambda: "pupil_bridge" not in peer.node.get_node_names(), "the node has gone")


# --- services --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["companion", "core"])
def test_services_start_and_stop_the_devices_own_recording(tmp_path: Path, peer: Peer, device: str) -> None:
    with trackers(tmp_path) as (_, config), bridge(tmp_path, f"{config}control = true\n") as daemon:
        daemon.wait_locked("companion", "core")
        assert "record" in daemon.device(device)["functions"]
        for action in ("start", "stop"):
            answer = peer.call(Trigger, f"/pupil_bridge/{device}/{action}_recording")
            assert answer.success, answer.message
            assert answer.message.startswith(f"{device}: ")
            # Told by what the device says of itself; a device need not say it.
            wait_until(
                lambda action=action: daemon.device(device)["recording"] in (action == "start", None),
                f"{device}: {action}",
            )


def test_a_device_that_refuses_to_record_does_so_in_its_own_words(tmp_path: Path, peer: Peer) -> None:
    refusing = ("--refuse-recording", "no wearer is chosen")
    with trackers(tmp_path, *refusing) as (_, config), bridge(tmp_path, f"{config}control = true\n") as daemon:
        daemon.wait_locked("companion", "core")
        answer = peer.call(Trigger, "/pupil_bridge/companion/start_recording")
        assert not answer.success
        assert "no wearer is chosen" in answer.message


def test_a_device_that_has_gone_is_said_and_its_services_stay_answered(tmp_path: Path, peer: Peer) -> None:
    with trackers(tmp_path) as (phone, config), bridge(tmp_path, f"{config}control = true\n") as daemon:
        daemon.wait_locked("companion", "core")
        service = "/pupil_bridge/companion/start_recording"
        wait_until(lambda: service in peer.services("/pupil_bridge/"), "the service is there")
        phone.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: not daemon.device("companion")["connected"], "the device has gone", 60.0)
        if service in peer.services("/pupil_bridge/"):
            answer = peer.call(Trigger, service)
            assert not answer.success
            assert "companion" in answer.message


def test_an_event_by_a_service_reaches_the_device(tmp_path: Path, peer: Peer) -> None:
    if not is_there("pupil_msgs/Gaze"):
        pytest.skip("pupil_msgs is not installed")
    from pupil_msgs.srv import SendEvent

    with (
        trackers(tmp_path, "--event-rate", "0") as (_, config),
        bridge(tmp_path, f"{config}control = true\n") as daemon,
    ):
        daemon.wait_locked("companion", "core")
        answer = peer.call(SendEvent, "/pupil_bridge/companion/send_event", text="from ROS")
        assert answer.success, answer.message


def test_an_annotation_by_a_service_is_in_captures_recording_at_the_sender_s_moment(tmp_path: Path, peer: Peer) -> None:
    if not is_there("pupil_msgs/Gaze"):
        pytest.skip("pupil_msgs is not installed")
    from builtin_interfaces.msg import Time

    from pupil_msgs.srv import SendEvent

    with trackers(tmp_path) as (_, config), bridge(tmp_path, f"{config}control = true\n") as daemon:
        daemon.wait_locked("companion", "core")
        assert peer.call(Trigger, "/pupil_bridge/core/start_recording").success
        moments_ns = {}
        for number in range(5):
            at_ns = time.monotonic_ns() - number * 100_000_000
            moments_ns[f"by ROS {number}"] = at_ns
            sec, nanosec = divmod(at_ns + time.time_ns() - time.monotonic_ns(), 1_000_000_000)
            stamp = Time(sec=sec, nanosec=nanosec)
            answer = peer.call(SendEvent, "/pupil_bridge/core/send_event", text=f"by ROS {number}", stamp=stamp)
            assert answer.success, answer.message
        assert peer.call(Trigger, "/pupil_bridge/core/stop_recording").success
    rows = {row["payload"]: row for row in truth(tmp_path / "core.jsonl", "annotation")}
    assert rows.keys() == moments_ns.keys()
    assert all(row["sent"] for row in rows.values()), "the recording has them"
    worst_ns = max(abs(rows[text]["host_ns"] - at_ns) for text, at_ns in moments_ns.items())
    print(f"\nannotations by ROS are wrong by {worst_ns / 1e6:.4f} ms at most")
    assert worst_ns <= 1_000_000


def test_without_leave_the_daemon_offers_no_services_of_devices(tmp_path: Path, peer: Peer) -> None:
    with trackers(tmp_path) as (_, config), bridge(tmp_path, config) as daemon:
        daemon.wait_locked("companion", "core")
        assert state(peer) == "active"
        assert peer.services("/pupil_bridge/") == set()


# --- parameters and reloads ------------------------------------------------------------------------------------------


def test_a_parameter_of_the_daemon_is_set_through_it_and_outlives_a_reload(tmp_path: Path, peer: Peer) -> None:
    with trackers(tmp_path) as (_, config), bridge(tmp_path, config) as daemon:
        daemon.wait_locked("companion", "core")
        assert peer.set(NODE, clock__ping_interval_s=0.5, timestamp_mode="arrival") == ["", ""]
        path = tmp_path / "bridge.toml"
        path.write_text(path.read_text() + "[clock]\nping_interval_s = 2\nhold_s = 3\n")
        assert "clock" in daemon.ask("reload")["changes"]
        names = ("clock.ping_interval_s", "clock.hold_s", "timestamp_mode")
        assert peer.get(NODE, *names) == [0.5, 3.0, "arrival"]
        (reason,) = peer.set(NODE, use_sim_time=True)
        assert "use_sim_time is not possible" in reason
        lsl_goes_on(daemon)


def test_a_node_that_a_reload_renames_leaves_its_old_name(tmp_path: Path, peer: Peer) -> None:
    with trackers(tmp_path) as (_, config), bridge(tmp_path, config) as daemon:
        daemon.wait_locked("companion", "core")
        wait_until(lambda: "pupil_bridge" in peer.node.get_node_names(), "the node is seen")
        path = tmp_path / "bridge.toml"
        path.write_text(path.read_text().replace('type = "ros2"', 'type = "ros2"\nnode_name = "eyes"'))
        assert daemon.ask("reload")["changes"] == "changed sink ros2"
        wait_until(lambda: "eyes" in peer.node.get_node_names(), "the new node is seen")
        wait_until(lambda: "pupil_bridge" not in peer.node.get_node_names(), "the old node has gone")
        before = gaze(daemon)["samples_out"]["ros2"]
        wait_until(lambda: gaze(daemon)["samples_out"]["ros2"] > before + 20, "it is published to")


def test_trouble_from_all_sides_at_once_ends_with_a_daemon_that_streams(tmp_path: Path, peer: Peer) -> None:
    """Transitions, parameters and reloads of several clients while a device comes and goes."""
    with trackers(tmp_path) as (phone, config), bridge(tmp_path, config) as daemon:
        daemon.wait_locked("companion", "core")
        path, ended = tmp_path / "bridge.toml", threading.Event()
        text, failures = path.read_text(), list[str]()
        others = [Peer(f"trouble{number}") for number in range(2)]

        def transitions() -> None:
            rng = random.Random(1)
            while not ended.is_set():
                change(others[0], rng.choice(["configure", "activate", "deactivate", "cleanup", "activate"]))

        def parameters() -> None:
            rng = random.Random(2)
            while not ended.is_set():
                others[1].set(NODE, True, queue_size=rng.randrange(10, 1000), clock__hold_s=rng.uniform(1, 9))
                others[1].set(NODE, frame_prefix=rng.choice(["a/", "b/"]))

        def guarded(work: Any) -> None:
            try:
                work()
            except AssertionError as error:
                failures.append(str(error))

        threads = [threading.Thread(target=guarded, args=(work,)) for work in (transitions, parameters)]
        for thread in threads:
            thread.start()
        rng, until_s = random.Random(3), time.monotonic() + 8.0
        try:
            while time.monotonic() < until_s:
                more = '[[source]]\ntype = "pupil_core"\nname = "extra"\naddress = "127.0.0.1:1"\n'
                path.write_text(text.replace("[[sink]]", f"{more}[[sink]]", 1) if rng.random() < 0.5 else text)
                daemon.ask("reload")
                phone.popen.send_signal(rng.choice([signal.SIGSTOP, signal.SIGCONT]))
        finally:
            phone.popen.send_signal(signal.SIGCONT)
            ended.set()
            for thread in threads:
                thread.join(60)
            for other in others:
                other.close()
        assert failures == []
        path.write_text(text)
        daemon.ask("reload")
        for step in ("deactivate", "cleanup", "configure", "activate"):
            change(peer, step)
        assert state(peer) == "active"
        daemon.wait_locked("companion", "core")
        before = gaze(daemon)["samples_out"]["ros2"]
        wait_until(lambda: gaze(daemon)["samples_out"]["ros2"] > before + 20, "it is published again")
        lsl_goes_on(daemon)
        assert daemon.process.stop() == 0
        assert "Traceback" not in daemon.process.errors()
