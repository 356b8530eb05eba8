"""Choosing a configuration by time, energy or their product, on candidates whose costs are known."""

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.kernels import precompile  # noqa: E402
from benchmarks.kernels.cell import SHAPES, Cell, WeightStore  # noqa: E402
from benchmarks.kernels.formats import FORMATS, make_experts  # noqa: E402
from benchmarks.kernels.own import OWN_KERNELS  # noqa: E402
from benchmarks.kernels.rivals import RIVALS  # noqa: E402
from benchmarks.kernels.tuning import Effort, Measured, Objective, Tuned, tune  # noqa: E402

from benchmarks import tune as frozen  # noqa: E402
from thermoe.errors import ConfigError, CostError  # noqa: E402
from thermoe.kernels.expert_mlp import configs  # noqa: E402
from thermoe.kernels.expert_mlp.configs import Shape, config_space  # noqa: E402
from thermoe.kernels.expert_mlp.op import flatten  # noqa: E402

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


def test_a_stage_varies_one_product_and_starts_from_the_rule():
    shape = Shape("int4-g128", 2048, 768, 128, 8, 16)
    space = list(config_space(shape, 90))
    first = frozen.first_product(space, 7)
    assert first[0] == space[0]
    assert len(first) <= 9
    assert {c.fc2 for c in first} == {space[0].fc2}
    assert not any(c.cuda for c in first[1:])
    best = replace(first[-1], cuda=False)
    second = frozen.second_product(space, best, 7)
    assert second[0] == best
    assert replace(best, dependent=not best.dependent) in second
    assert {c.fc1 for c in second if c != replace(space[0], cuda=False)} == {best.fc1}
    assert second == frozen.second_product(space, best, 7)


def test_a_choice_is_frozen_as_the_kernels_read_it(tmp_path, monkeypatch):
    shape = Shape("int4-g128", 2048, 768, 128, 8, 13)
    config = list(config_space(shape, 90))[3]
    found = tuned(Objective.TIME, Measured(settings=config.to_dict(), latency_us=50.0, energy_mj=30.0))
    path = tmp_path / "new" / "configs.json"
    assert frozen.load_entries(path) == frozen.load_entries(tmp_path / "nowhere.json")
    old = frozen.frozen_entry("card", shape, tuned(Objective.TIME, measured("old", 60.0, None)))
    other = frozen.frozen_entry("another card", shape, tuned(Objective.TIME, measured("kept", 60.0, None)))
    entries = frozen.merge([old, other], [frozen.frozen_entry("card", shape, found)])
    frozen.write_entries(path, entries)
    assert frozen.load_entries(path) == entries
    assert [e["gpu"] for e in entries] == ["another card", "card"]
    assert (entries[1]["tokens"], entries[1]["objective"], entries[1]["energy_mj"]) == (16, "time", 30.0)
    monkeypatch.setattr(configs.resources, "files", lambda package: path.parent)
    configs._frozen.cache_clear()
    configs.choose.cache_clear()
    frozen.write_entries(path, entries[1:])
    assert configs.choose("card", 90, shape) == config
    assert configs.choose("card", 90, replace(shape, num_tokens=16)) == config
    assert configs.choose("card", 90, replace(shape, num_tokens=17)) != config
    configs._frozen.cache_clear()
    configs.choose.cache_clear()


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 99, "entries": []}', "[]"])
def test_a_file_that_holds_no_choices_is_refused(text, tmp_path):
    path = tmp_path / "configs.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        frozen.load_entries(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_tuning_needs_a_gpu(tmp_path, capsys):
    assert frozen.main(["--out", str(tmp_path / "c.json")]) == 2
    assert frozen.main(["--out", str(tmp_path / "c.json"), "--formats", "int3"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("benchmarks.tune: error: ") for line in errors] == [True, True]


@pytest.mark.parametrize("name", FORMATS)
def test_hollow_weights_have_the_sizes_of_real_ones(name):
    hollow, real = (make(name, SHAPES["tiny"]) for make in (hollow_layer, real_layer))
    assert [(t.shape, t.dtype, t.is_contiguous()) for t in hollow] == [
        (t.shape, t.dtype, t.is_contiguous()) for t in real
    ]


def hollow_layer(name, shape):
    return tensors(precompile.hollow_experts(name, shape, CPU))


def real_layer(name, shape):
    return tensors(make_experts(name, shape, CPU, seed=0))


def tensors(experts):
    fc1, fc2, extras, _ = flatten(experts, None)
    return [*fc1, *fc2, *extras]


def test_every_own_row_of_a_plan_is_compiled_ahead_and_no_other():
    entries = [e for e in OWN_KERNELS if e.op in ("expert_mlp", "routing", "dequantize")]
    tasks = precompile.own_tasks(entries, ["tiny"], ["int4"], [1, 16], CPU)
    assert {OWN_KERNELS[task.entry].op for task in tasks} == {"expert_mlp", "routing"}
    assert {task.dtype for task in tasks} == {"int4", "f32"}
    assert len(tasks) == 2 * (2 + 3)
    compiler = precompile.Precompiler(None, CPU)
    assert compiler.run(tasks) == 0
    compiler.close()


def test_what_was_not_reached_in_time_is_counted():
    found = run_tune([candidate(sleep_s=0.001)] * 13, effort=Effort(rounds=1, limit_s=1e-3))
    assert (len(found.measured), found.not_reached) == (12, 1)


def test_tuning_for_joules_needs_sensors_and_something_that_runs():
    with pytest.raises(ConfigError, match="sensors"):
        run_tune([candidate()], objective=Objective.ENERGY)
    with pytest.raises(ConfigError, match="none of 1 configurations"):
        run_tune([candidate("wrong")])
