"""Host time on a steady clock, on a machine whose slew the test sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.clock.host import steady_scale
from bridge.clock.host_scale import HISTORY_NS, REFRESH_NS, SteadyScale
from tests.clock.host_machine import MS, US, Machine, S


def scale_of(machine: Machine) -> SteadyScale:
    return steady_scale(machine.steady_ns, machine.host_ns)


def use(machine: Machine, scale: SteadyScale, duration_ns: int, interval_ns: int = 5 * MS) -> list[int]:
    """Converts the present at a constant rate; the errors of that."""
    errors_ns = []
    for _ in range(duration_ns // interval_ns):
        machine.run(interval_ns)
        host_ns, steady_ns = machine.host, machine.steady
        errors_ns.append(scale.to_steady(host_ns) - steady_ns)
    return errors_ns


# --- exactness -------------------------------------------------------------------------------------------------------


@given(
    slew_ppm=st.integers(-500, 500),
    reading_ns=st.integers(0, 200),
    moments_ns=st.lists(st.integers(0, 300 * S), min_size=1, max_size=50),
)
def test_a_constant_rate_is_converted_to_2_ns_live_and_late(
    slew_ppm: int, reading_ns: int, moments_ns: list[int]
) -> None:
    machine = Machine(slew_ppm, reading_ns)
    scale = scale_of(machine)
    truths: list[tuple[int, int]] = []
    machine.run(2 * REFRESH_NS)
    scale.read()
    for _ in range(20):
        machine.run(REFRESH_NS)
        scale.read()
    elapsed_ns = 0
    for moment_ns in sorted(moments_ns):
        machine.run(moment_ns - elapsed_ns)
        elapsed_ns = moment_ns
        host_ns, steady_ns = machine.host, machine.steady
        truths.append((host_ns, steady_ns))
        assert abs(scale.to_steady(host_ns) - steady_ns) <= 2 + reading_ns
        assert abs(scale.to_host(steady_ns) - host_ns) <= 2 + reading_ns
    for host_ns, steady_ns in truths:
        assert abs(scale.to_steady(host_ns) - steady_ns) <= 2 + reading_ns
        assert abs(scale.to_host(steady_ns) - host_ns) <= 2 + reading_ns


@pytest.mark.parametrize("slew_ppm", [0, 13, -500, 500])
def test_in_use_at_a_constant_rate_the_error_stays_at_2_ns_and_few_pieces_are_kept(slew_ppm: int) -> None:
    machine = Machine(slew_ppm, reading_ns=0)
    scale = scale_of(machine)
    use(machine, scale, 2 * S)
    pieces = scale.pieces
    errors_ns = use(machine, scale, 300 * S)
    assert max(map(abs, errors_ns)) <= 2
    assert scale.pieces <= pieces + 3
    assert abs(scale.rate_ppm - slew_ppm) < 0.01


def test_before_the_first_reading_the_first_rate_holds() -> None:
    machine = Machine(slew_ppm=100, reading_ns=0)
    host_ns, steady_ns = machine.host, machine.steady
    machine.run(60 * S)
    scale = scale_of(machine)
    machine.run(S)
    scale.read()
    assert abs(scale.to_steady(host_ns) - steady_ns) <= 200  # a ns of rounding in the second that the rate is from
    assert abs(scale.to_host(steady_ns) - host_ns) <= 200


def test_without_a_steady_clock_host_time_is_steady() -> None:
    machine = Machine(slew_ppm=500)
    scale = steady_scale(None, machine.host_ns)
    for host_ns in (-5, 0, 1, machine.host, machine.host + 10**15):
        assert scale.to_steady(host_ns) == host_ns
        assert scale.to_host(host_ns) == host_ns
    assert not scale.read()
    assert (scale.bound_ns, scale.rate_ppm, scale.pieces) == (0, 0.0, 1)


# --- changes of the host's rate --------------------------------------------------------------------------------------


def test_the_onset_of_a_500_ppm_slew_costs_50_us_for_a_third_of_a_second() -> None:
    for onset_ns in range(0, 100 * MS, 7 * MS):
        machine = Machine()
        scale = scale_of(machine)
        use(machine, scale, 3 * S)
        machine.run(onset_ns)
        scale.to_steady(machine.host)
        machine.slew_ppm = 500
        errors_ns = use(machine, scale, 3 * S)
        assert max(map(abs, errors_ns)) <= 60 * US
        late_ns = errors_ns[330 // 5 :]
        assert max(map(abs, late_ns)) <= 200
        assert scale.bound_ns <= 200
        assert abs(scale.rate_ppm - 500) < 1


def test_a_correction_is_spread_and_not_a_jump() -> None:
    machine = Machine()
    scale = scale_of(machine)
    use(machine, scale, 3 * S)
    machine.slew_ppm = 500
    errors_ns = use(machine, scale, S)
    assert max(abs(b - a) for a, b in pairwise(errors_ns)) <= 6 * US  # 5 ms apart


def test_after_a_pause_the_first_conversion_is_right_whatever_ntp_did_in_it() -> None:
    """Nothing has been promised since, so the newest reading is met exactly."""
    machine = Machine()
    scale = scale_of(machine)
    use(machine, scale, 3 * S)
    for slew_ppm in (500, 0, -500):
        machine.slew_ppm = slew_ppm
        machine.run(10 * S)
        host_ns, steady_ns = machine.host, machine.steady
        assert abs(scale.to_steady(host_ns) - steady_ns) <= 2
        machine.slew_ppm -= 100
        machine.run(10 * S)
        host_ns, steady_ns = machine.host, machine.steady
        assert abs(scale.to_host(steady_ns) - host_ns) <= 2


def test_a_pause_in_the_middle_of_a_correction_does_not_make_it_longer() -> None:
    machine = Machine()
    scale = scale_of(machine)
    use(machine, scale, 3 * S)
    machine.slew_ppm = 500
    use(machine, scale, 120 * MS)
    machine.run(5 * S)
    host_ns, steady_ns = machine.host, machine.steady
    machine.run(5 * S)
    scale.read()
    assert abs(scale.to_steady(host_ns) - steady_ns) <= 200


def test_a_change_of_8_percent_as_chrony_makes_them_is_followed_in_order() -> None:
    machine = Machine()
    scale = scale_of(machine)
    last_ns = 0
    for slew_ppm in (83_000, -83_000, 0):
        machine.slew_ppm = slew_ppm
        for _ in range(400):
            machine.run(5 * MS)
            host_ns, truth_ns = machine.host, machine.steady
            steady_ns = scale.to_steady(host_ns)
            assert last_ns <= steady_ns
            assert abs(steady_ns - truth_ns) <= 20 * MS
            assert abs(scale.to_host(steady_ns) - host_ns) <= 2
            last_ns = steady_ns
        assert abs(steady_ns - truth_ns) <= 200


def test_the_backlog_of_an_outage_is_converted_through_slews() -> None:
    """Read ten times a second, nothing asked for a minute, then all of it."""
    machine = Machine()
    scale = scale_of(machine)
    use(machine, scale, 3 * S)
    truths = []
    for number in range(600):
        if number % 70 == 0:
            machine.slew_ppm = (500, -300, 0, 20)[number // 70 % 4]
        for _ in range(10):
            machine.run(10 * MS)
            truths.append((machine.host, machine.steady))
        scale.read()
    for host_ns, steady_ns in truths:
        assert abs(scale.to_steady(host_ns) - steady_ns) <= 27 * US  # a bend between two readings is not seen
        assert abs(scale.to_host(steady_ns) - host_ns) <= 27 * US
    assert sum(abs(scale.to_steady(h) - s) > 200 for h, s in truths) < 0.03 * len(truths)


def test_clocks_that_jump_against_each_other_are_met_again_in_order() -> None:
    """No Linux does this. Whatever does it must not turn stamps round."""
    for jump_ns in (3 * S, -3 * S):
        machine = Machine()
        scale = scale_of(machine)
        use(machine, scale, 3 * S)
        machine.steady += jump_ns
        last_ns = scale.to_steady(machine.host)
        for _ in range(4000):
            machine.run(5 * MS)
            host_ns, truth_ns = machine.host, machine.steady
            steady_ns = scale.to_steady(host_ns)
            assert last_ns <= steady_ns
            assert abs(scale.to_host(steady_ns) - host_ns) <= 2
            last_ns = steady_ns
        assert abs(steady_ns - truth_ns) <= 200


def test_ten_minutes_of_ceaseless_change_are_kept_and_no_more() -> None:
    machine = Machine(slew_ppm=-200)
    scale = scale_of(machine)
    machine.run(S)
    scale.read()
    machine.slew_ppm = 300
    steadily = []
    for _ in range(20):
        machine.run(50 * S)
        scale.read()
        steadily.append((machine.host, machine.steady))
    machine.run(S)
    scale.read()
    truths = []
    for number in range(HISTORY_NS // S + 1):
        machine.slew_ppm = 100 if number % 2 else -100
        machine.run(S if number < HISTORY_NS // S else S // 2)  # at its end the steady time has just been forgotten
        scale.read()
        truths.append((machine.host, machine.steady))
    assert scale.pieces == HISTORY_NS // S + 2
    for host_ns, steady_ns in truths[2:]:
        assert abs(scale.to_steady(host_ns) - steady_ns) <= 500
    # What is older is extended at the rate that it had last.
    for host_ns, steady_ns in steadily:
        assert abs(scale.to_steady(host_ns) - steady_ns) <= 1e-9 * (machine.host - host_ns) + 500
        assert abs(scale.to_host(steady_ns) - host_ns) <= 1e-9 * (machine.host - host_ns) + 500


# --- reading ---------------------------------------------------------------------------------------------------------


def test_the_clocks_are_read_when_an_instant_100_ms_after_the_newest_reading_is_asked_for() -> None:
    machine = Machine()
    reads = 0

    def steady_ns() -> int:
        nonlocal reads
        reads += 1
        return machine.steady_ns()

    scale = steady_scale(steady_ns, machine.host_ns)
    reads = 0
    started_ns = machine.host
    machine.run(90 * MS)
    scale.to_steady(machine.host)
    scale.to_host(scale.to_steady(started_ns))
    assert reads == 0
    machine.run(20 * MS)
    scale.to_steady(started_ns)
    assert reads == 0
    scale.to_steady(machine.host)
    assert reads == 5
    assert not scale.read()
    machine.run(REFRESH_NS // 2 + 1)
    assert scale.read()
    assert reads == 10
    machine.run(REFRESH_NS)
    scale.to_host(machine.steady)
    assert reads == 15


def test_an_instant_of_the_future_keeps_no_later_one_from_being_exact() -> None:
    machine = Machine(reading_ns=0)
    scale = scale_of(machine)
    use(machine, scale, S)
    for convert in (scale.to_steady, scale.to_host):
        convert(machine.host + 3600 * S)
        machine.slew_ppm += 250
        use(machine, scale, S)
        assert max(map(abs, use(machine, scale, S))) <= 2


def test_a_reading_spoilt_by_a_stall_changes_nothing() -> None:
    machine = Machine(slew_ppm=20)
    scale = scale_of(machine)
    use(machine, scale, 3 * S)
    for _ in range(10):
        machine.run(REFRESH_NS)
        machine.reading_ns = 3 * MS
        before = scale.pieces
        assert scale.read()
        machine.reading_ns = 50
        assert scale.pieces == before
        assert max(map(abs, use(machine, scale, 500 * MS))) <= 100


def test_the_bound_covers_the_error_at_the_newest_reading() -> None:
    machine = Machine()
    scale = scale_of(machine)
    for slew_ppm in (0, 500, -500, 30):
        machine.slew_ppm = slew_ppm
        for _ in range(8):
            use(machine, scale, 95 * MS)
            machine.run(10 * MS)
            host_ns, steady_ns = machine.host, machine.steady
            assert scale.read()
            assert abs(scale.to_steady(host_ns) - steady_ns) <= scale.bound_ns + 2


# --- what always holds -----------------------------------------------------------------------------------------------

happenings = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 400 * MS)),
        st.tuples(st.just("pause"), st.integers(0, 60 * S)),
        st.tuples(st.just("slew"), st.integers(-500, 500)),
        st.tuples(st.just("stall"), st.integers(0, 20 * MS)),
        st.tuples(st.just("read"), st.just(0)),
        st.tuples(st.just("past"), st.integers(0, 120 * S)),
        st.tuples(st.just("future"), st.integers(0, 120 * S)),
        st.tuples(st.just("back"), st.integers(0, 10 * S)),
    ),
    max_size=60,
)


@given(happenings)
def test_it_is_invertible_never_decreases_and_never_changes_an_answer(happenings: list[tuple[str, int]]) -> None:
    machine = Machine()
    scale = scale_of(machine)
    first_ns, first_steady_ns = machine.host, machine.steady
    answers: list[tuple[int, int]] = []
    back: list[tuple[int, int]] = []
    widest_ns = 0
    for what, amount in happenings:
        asked_ns = machine.host
        if what in ("run", "pause"):
            machine.run(amount)
            asked_ns = machine.host
        elif what == "slew":
            machine.slew_ppm = amount
        elif what == "stall":
            machine.reading_ns = amount
            scale.read()
            machine.reading_ns = 50
            widest_ns = max(widest_ns, amount)
        elif what == "read":
            scale.read()
        elif what == "past":
            asked_ns = max(first_ns, asked_ns - amount)
        elif what == "future":
            steady_ns = scale.to_steady(asked_ns + amount)
            assert abs(scale.to_host(steady_ns) - asked_ns - amount) <= 2
            continue
        elif what == "back":
            steady_ns = max(first_steady_ns, machine.steady - amount)
            back.append((steady_ns, scale.to_host(steady_ns)))
            continue
        answers.append((asked_ns, scale.to_steady(asked_ns)))
        assert abs(scale.to_host(answers[-1][1]) - asked_ns) <= 2
    for host_ns, steady_ns in answers:
        assert scale.to_steady(host_ns) == steady_ns
    for steady_ns, host_ns in back:
        assert abs(scale.to_host(steady_ns) - host_ns) <= 2
    answers.sort()
    for (host_ns, steady_ns), (later_host_ns, later_steady_ns) in pairwise(answers):
        assert steady_ns <= later_steady_ns
        # Host time is at most 500 ppm off, and so is each of two corrections.
        assert abs((later_steady_ns - steady_ns) - (later_host_ns - host_ns)) <= (
            (later_host_ns - host_ns) * 5e-3 + 2 + 4 * widest_ns
        )
