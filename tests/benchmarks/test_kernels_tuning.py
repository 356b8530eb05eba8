"""Choosing a configuration by time, energy or their product, on candidates whose costs are known."""

import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.kernels.cell import SHAPES, Cell, WeightStore  # noqa: E402
from benchmarks.kernels.rivals import RIVALS  # noqa: E402
from benchmarks.kernels.tuning import Effort, Measured, Objective, Tuned, tune  # noqa: E402

from thermoe.errors import ConfigError, CostError  # noqa: E402

CPU = torch.device("cpu")
RIGHT = next(e.build for e in RIVALS if e.impl == "torch_grouped_mm")


def measured(name, latency_us, energy_mj):
    return Measured(settings={"name": name}, latency_us=latency_us, energy_mj=energy_mj)


def tuned(objective, *figures):
    return Tuned(measured=figures, objective=objective, rejected=0, not_reached=0)


FIGURES = (measured("fast", 10.0, 8.0), measured("thrifty", 20.0, 5.0), measured("between", 11.0, 6.0))


@pytest.mark.parametrize(("objective", "name"), [("time", "fast"), ("energy", "thrifty"), ("energy-delay", "between")])
def test_each_objective_has_its_own_best(objective, name):
    assert tuned(Objective(objective), *FIGURES).chosen.settings["name"] == name


def test_where_fastest_and_thriftiest_differ_both_are_named():
    line = tuned(Objective.TIME, *FIGURES).disagreement()
    assert all(word in line for word in ("10 us", "8 mJ", "20 us", "5 mJ", "fast", "thrifty"))
    assert tuned(Objective.TIME, measured("one", 1.0, 1.0), measured("two", 2.0, 2.0)).disagreement() is None
    assert tuned(Objective.TIME, measured("one", 1.0, None)).disagreement() is None


def test_a_configuration_without_joules_is_never_the_thriftiest():
    figures = (measured("unknown", 1.0, None), measured("known", 9.0, 9.0))
    assert tuned(Objective.ENERGY, *figures).chosen.settings["name"] == "known"
    with pytest.raises(CostError, match="tune with a GPU"):
        _ = tuned(Objective.ENERGY_DELAY, figures[0]).chosen


def build(cell, dtype, num_layers, settings):
    run = RIGHT(cell, dtype, num_layers)

    def slowed(layer):
        if settings["kind"] == "wrong":
            return (torch.zeros_like(run(layer)[0]),)
        time.sleep(settings["sleep_s"])
        return run(layer)

    if settings["kind"] == "broken":
        raise RuntimeError("out of shared memory")
    return slowed


def candidate(kind="right", sleep_s=0.0):
    return {"kind": kind, "sleep_s": sleep_s}


def run_tune(candidates, **more):
    cell = Cell("tiny", 5, CPU, WeightStore(SHAPES["tiny"], CPU))
    options = {"objective": Objective.TIME, "effort": Effort(rounds=1), "read": None} | more
    return tune(cell, "bf16", candidates, build, **options)


def test_the_fastest_right_configuration_is_chosen(capsys):
    candidates = [candidate("wrong"), candidate(sleep_s=0.02), candidate("broken"), candidate(sleep_s=0.005)]
    found = run_tune(candidates)
    assert found.chosen.settings["sleep_s"] == 0.005
    assert (len(found.measured), found.rejected, found.not_reached) == (2, 2, 0)
    said = capsys.readouterr().out
    assert "out of shared memory" in said
    assert "float64" in said


def test_what_was_not_reached_in_time_is_counted():
    found = run_tune([candidate(sleep_s=0.001)] * 13, effort=Effort(rounds=1, limit_s=1e-3))
    assert (len(found.measured), found.not_reached) == (12, 1)


def test_tuning_for_joules_needs_sensors_and_something_that_runs():
    with pytest.raises(ConfigError, match="sensors"):
        run_tune([candidate()], objective=Objective.ENERGY)
    with pytest.raises(ConfigError, match="none of 1 configurations"):
        run_tune([candidate("wrong")])
