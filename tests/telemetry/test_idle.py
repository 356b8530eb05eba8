"""What a board takes without work: known for the twin, read from a real board that says it rests."""

import pytest

from thermoe.errors import TelemetryError
from thermoe.telemetry import DigitalTwin, ReplaySource, SimulatedSource, idle_figures
from thermoe.types import Kind, SysState


class Board:
    """A real board that reads what it is told, or fails."""

    name, kind = "nvml:0", Kind.MEASURED

    def __init__(self, fails=False, **readings):
        self._fails, self._readings = fails, readings

    def read(self):
        if self._fails:
            raise TelemetryError("gone")
        return SysState(time_s=0.0, wall_time_s=0.0, source=self.name, kind=self.kind, **self._readings)

    def close(self):
        pass


def test_the_figures_of_the_twin_are_those_that_it_settles_at():
    twin = DigitalTwin()
    idle = idle_figures(SimulatedSource(twin))
    twin.idle(120.0)
    state = twin.read()
    assert idle.power_w == pytest.approx(state.power_w, rel=1e-6)
    assert idle.temp_c == pytest.approx(state.temp_c, rel=1e-6)


@pytest.mark.parametrize(
    ("readings", "power_w"),
    [
        ({"gpu_util": 0.0, "power_w": 92.5, "power_avg_w": 300.0, "temp_c": 60.0}, 92.5),
        ({"gpu_util": 0.0, "power_avg_w": 80.0}, 80.0),
        ({"gpu_util": 0.0}, None),
    ],
)
def test_a_board_that_rests_shows_its_idle_power_and_nothing_of_its_lowest_temperature(readings, power_w):
    idle = idle_figures(Board(**readings))
    assert (idle.board, idle.power_w, idle.temp_c) == ("nvml:0", power_w, None)


@pytest.mark.parametrize("readings", [{"gpu_util": 0.3, "power_w": 400.0}, {"power_w": 400.0}, {"fails": True}])
def test_a_board_that_works_or_does_not_say_tells_nothing(readings):
    assert idle_figures(Board(**readings)) is None


def test_a_replayed_log_is_of_other_work():
    state = SysState(time_s=0.0, wall_time_s=0.0, source="log", kind=Kind.REPLAYED, gpu_util=0.0, power_w=90.0)
    assert idle_figures(ReplaySource([state])) is None
