import pytest

from thermoe.profiling.energy_window import WindowFigures, hole_s, join_windows, summarise_window, wait_until_cool
from thermoe.types import Kind, SysState


def state(time_s: float, **values) -> SysState:
    return SysState(time_s=time_s, wall_time_s=time_s, source="test", kind=Kind.MEASURED, **values)


def steady_load(power_w: float, phase_s: float, *, duration_s: float = 2.0, reasons: int = 0) -> list[SysState]:
    """A counter that moves every 100 ms under a constant load, sampled every 10 ms."""
    samples = []
    for i in range(round(duration_s / 0.01)):
        time_s = 0.01 * i
        ticks = int((time_s + phase_s) / 0.1 + 1e-9)
        samples.append(
            state(
                time_s,
                energy_j=5e4 + power_w * 0.1 * ticks,
                power_w=power_w,
                temp_c=40.0,
                sm_clock_mhz=1980.0,
                throttle_reasons=reasons,
            )
        )
    return samples


@pytest.mark.parametrize("phase_s", [0.0, 0.013, 0.05, 0.099])
def test_power_does_not_depend_on_where_the_window_falls_between_two_changes_of_the_counter(phase_s):
    window = summarise_window(steady_load(437.0, phase_s))
    assert window.power_counter_w == pytest.approx(437.0, rel=1e-6)
    assert window.power_integrated_w == pytest.approx(437.0, rel=1e-9)
    assert 1.7 < window.duration_s <= 2.0
    assert window.throttled is False


def test_power_cap_is_a_throttle_and_a_silent_sensor_is_none():
    assert summarise_window(steady_load(690.0, 0.0, reasons=0x4)).throttled is True
    silent = summarise_window([state(0.1 * i) for i in range(20)])
    assert (silent.power_counter_w, silent.power_integrated_w, silent.temp_c, silent.throttled) == (None,) * 4


def test_a_counter_that_never_moves_gives_no_energy():
    window = summarise_window([state(0.1 * i, energy_j=7.0, power_w=300.0) for i in range(20)])
    assert window.power_counter_w is None
    assert window.power_integrated_w == pytest.approx(300.0)


def test_a_window_in_which_the_process_was_held_up_is_no_figure():
    held_up = [state(0.1 * i + (100.0 if i > 10 else 0.0), energy_j=30.0 * i, power_w=300.0) for i in range(21)]
    assert hole_s(held_up) == pytest.approx(100.1)
    window = summarise_window(held_up)
    assert (window.power_counter_w, window.power_integrated_w) == (None, None)
    slow = [state(2.0 * i, energy_j=600.0 * i, power_w=300.0) for i in range(9)]
    assert hole_s(slow) == hole_s(slow[:1]) == 0.0
    assert summarise_window(slow).power_counter_w == pytest.approx(300.0)


def test_a_counter_that_was_reset_on_the_way_gives_no_energy_however_far_it_counts_again():
    reset = [state(0.1 * i, energy_j=100.0 + i if i < 10 else 30.0 * (i - 9), power_w=300.0) for i in range(21)]
    window = summarise_window(reset)
    assert (window.power_counter_w, window.power_integrated_w) == (None, pytest.approx(300.0))


def test_cooling_stops_at_the_temperature_or_at_the_bound():
    falling = iter([state(0.1 * i, temp_c=50.0 - i) for i in range(100)])
    assert wait_until_cool(lambda: next(falling), 45.0, 60.0, lambda s: None).temp_c == 45.0
    hot = iter([state(0.1 * i, temp_c=90.0) for i in range(100)])
    assert wait_until_cool(lambda: next(hot), 45.0, 1.0, lambda s: None).time_s == pytest.approx(1.0)


def figures(power_w, integrated_w=None, throttled=False):
    return WindowFigures(
        duration_s=2.0,
        power_counter_w=power_w,
        power_integrated_w=integrated_w,
        temp_c=40.0,
        sm_clock_mhz=None,
        memory_clock_mhz=None,
        power_limit_w=700.0,
        throttled=throttled,
    )


def test_windows_join_to_their_mean_and_spread():
    joined = join_windows([(1e-3, figures(500.0, 490.0)), (3e-3, figures(200.0, 210.0, throttled=True))])
    assert joined.latency_s == pytest.approx(2e-3)
    assert joined.energy_j == pytest.approx(0.55)
    assert joined.energy_integrated_j == pytest.approx(0.56)
    assert joined.spread_pct == pytest.approx(100 * 0.1 / 0.55)
    assert joined.power_w == pytest.approx(275.0)
    assert (joined.windows, joined.throttled, joined.temp_c, joined.sm_clock_mhz) == (2, True, 40.0, None)


def test_silent_sensors_leave_nothing_but_time():
    joined = join_windows([(1e-3, figures(None))])
    assert (joined.energy_j, joined.energy_integrated_j, joined.spread_pct, joined.power_w) == (None, None, None, None)
    assert joined.latency_s == 1e-3
