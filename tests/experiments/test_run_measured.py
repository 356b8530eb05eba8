"""The paths of real sensors and of replayed logs, with a source whose power is known."""

import time

import numpy as np
import pytest

from thermoe.analysis.load import RunFolder
from thermoe.experiments import boards
from thermoe.experiments.config import RunConfig
from thermoe.experiments.run import run_experiment
from thermoe.telemetry import DigitalTwin
from thermoe.types import Kind, SysState

POWER_W = 250.0


class Sensors:
    """A GPU that always draws the same power."""

    name, kind = "nvml:0", Kind.MEASURED

    def __init__(self):
        self.begin_s = time.monotonic()
        self.closed = False

    def read(self):
        now_s = time.monotonic()
        energy_j = POWER_W * (now_s - self.begin_s)
        return SysState(
            time_s=now_s, wall_time_s=time.time(), source=self.name, kind=self.kind, power_w=POWER_W, energy_j=energy_j
        )

    def close(self):
        self.closed = True


def text_config(tiny_model, tiny_text, **changes):
    values = {"strategies": ("baseline", "opportunistic"), "max_tokens": 60, "batch_size": 2, "block_size": 10}
    return RunConfig(model=str(tiny_model), text=(str(tiny_text),), **(values | changes))


@pytest.fixture
def sensors(monkeypatch):
    source = Sensors()
    monkeypatch.setattr(boards, "open_source", lambda spec, device: source)
    return source


def test_energy_per_token_is_power_times_time_of_one_pass_however_often_it_was_repeated(
    tmp_path, tiny_model, tiny_text, quiet, sensors
):
    config = text_config(tiny_model, tiny_text, window_s=0.4)
    folder = RunFolder(run_experiment(config, tmp_path / "run", quiet))
    batches = folder.tables["batches"]
    assert set(batches["energy_kind"]) == {"measured"}
    assert folder.env["priced_as"] == "model"
    assert sensors.closed
    # Energy of one pass is far below that of the window, and close to power times the time of a pass.
    assert (batches["energy_j"] < 0.5 * POWER_W * 0.4).all()
    late = batches[batches["batch_index"] > 0]
    ratio = late["energy_j"] / (POWER_W * late["wall_s"])
    assert 0.3 < ratio.median() < 1.5
    np.testing.assert_allclose(batches["energy_j_integrated"], batches["energy_j"], rtol=0.02)
    np.testing.assert_allclose(batches["power_w_mean"], POWER_W, rtol=1e-6)
    assert (folder.tables["steps"]["latency_s"] > 0).all()
    assert set(folder.tables["telemetry"]["kind"]) == {"measured"}


def test_measured_decode_runs_one_position_at_a_time(tmp_path, tiny_model, tiny_text, quiet, sensors, monkeypatch):
    from transformers import Qwen3MoeForCausalLM

    lengths = []
    real = Qwen3MoeForCausalLM.forward

    def remember(self, input_ids=None, **kwargs):
        lengths.append(input_ids.shape[1])
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(Qwen3MoeForCausalLM, "forward", remember)
    run_experiment(text_config(tiny_model, tiny_text, window_s=0.0), tmp_path / "run", quiet)
    assert set(lengths) == {1}
    assert len(lengths) == 2 * 29


def test_an_adaptive_arm_hears_energy_from_the_power_reading(
    tmp_path, tiny_model, tiny_text, quiet, sensors, monkeypatch
):
    from thermoe.runtime.control_plane import ControlPlane

    heard = []
    real = ControlPlane.update

    def listen(self, observation):
        heard.append((str(self.strategy), observation))
        return real(self, observation)

    monkeypatch.setattr(ControlPlane, "update", listen)
    config = text_config(
        tiny_model,
        tiny_text,
        strategies=("baseline", "kernel_aware_ttha"),
        settings={"kernel_aware_ttha": {"price": 0.01, "target_power_w": 200.0}},
        calibration_text=(str(tiny_text),),
        calibration_tokens=300,
        control_steps=4,
    )
    run_experiment(config, tmp_path / "run", quiet)
    adaptive = [o for strategy, o in heard if strategy == "kernel_aware_ttha"]
    assert [o.num_steps for o in adaptive] == [4, 4, 2, 4, 4, 2, 4, 4, 1]
    assert all(o.energy_j == pytest.approx(POWER_W * o.period_s) for o in adaptive)


def test_a_sensor_that_fails_mid_run_becomes_none_and_the_run_goes_on(
    tmp_path, tiny_model, tiny_text, quiet, sensors, caplog
):
    reads = iter(range(10**9))
    real = sensors.read

    def fails_later():
        if next(reads) >= 4:
            raise OSError("lost")
        return real()

    sensors.read = fails_later
    folder = RunFolder(run_experiment(text_config(tiny_model, tiny_text, window_s=0.0), tmp_path / "run", quiet))
    assert len(folder.tables["batches"]) == 6
    assert folder.tables["batches"]["energy_j"].isna().any()
    assert folder.tables["batches"]["nll_sum"].notna().all()
    assert "lost" in caplog.text


def test_a_replayed_log_gives_its_own_readings_and_invents_no_latency(tmp_path, tiny_model, tiny_text, quiet):
    twin = DigitalTwin()
    lines = ["time_s,power_w,energy_j,temp_c"]
    for index in range(400):
        twin.idle(0.1)
        state = twin.read()
        lines.append(f"{state.time_s},{300 + index},{30.0 * index},{40.0}")
    log = tmp_path / "log.csv"
    log.write_text("\n".join(lines))
    config = text_config(tiny_model, tiny_text, telemetry=f"replay:{log}")
    tables = RunFolder(run_experiment(config, tmp_path / "run", quiet)).tables
    assert set(tables["batches"]["energy_kind"]) == {"replayed"}
    assert set(tables["telemetry"]["kind"]) == {"replayed"}
    assert tables["batches"]["latency_s"].isna().all()
    assert (tables["batches"]["power_w_mean"] > 300).all()
    assert tables["batches"]["nll_sum"].notna().all()
