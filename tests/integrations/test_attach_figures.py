"""The figures of `handle.summary()`: short attachments, positions that are steps, sensors that have not moved yet."""

import copy
import re
from pathlib import Path

import pytest
import torch
from attach_helpers import NAME, Meter, generate, untouched_model
from tiny_models import tiny_model, token_ids
from transformers import DynamicCache

import thermoe
import thermoe.integrations.transformers as attaching
from thermoe.errors import ConfigError
from thermoe.experts import MomentWatch
from thermoe.integrations.experts_held import expert_blocks
from thermoe.telemetry import DigitalTwin
from thermoe.types import NAMED_SHAPES, StepWork

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "decode.md"


@pytest.fixture
def model():
    with untouched_model() as model:
        yield model


def energy_j(summary) -> float:
    return summary["energy_j_per_token"]["value"]


def test_few_tokens_take_what_the_twin_drew_for_them(model):
    """One forward is shorter than the sensors' period: by their counter it would have taken nothing."""
    ids = token_ids(4, 5)
    with torch.no_grad(), thermoe.attach(model, "opportunistic") as handle:
        model(ids)
        of_four = handle.summary()
        model(ids)
        of_eight = handle.summary()
    least = DigitalTwin(NAMED_SHAPES["qwen3-30b-a3b"])
    work = StepWork(shape=handle.hooks.shape, num_tokens=20, distinct_experts=[1.0, 1.0], routed_rows=[60.0, 60.0])
    least.run_step(work)
    assert energy_j(of_four) >= 0.9 * least.energy_j / 20
    assert energy_j(of_eight) == pytest.approx(energy_j(of_four), rel=0.1)
    assert of_eight["power_w_mean"] == pytest.approx(energy_j(of_eight) * of_eight["tokens_per_s"], rel=1e-6)
    assert of_eight["power_w_mean"] > 200.0  # decode on a board that idles at 117 W


def test_positions_of_one_forward_cost_what_decoding_them_costs(model):
    ids, found = token_ids(4, 12), []
    for positions in (1, 12):
        with torch.inference_mode(), thermoe.attach(model, "opportunistic", union="positions") as handle:
            cache = DynamicCache(config=model.config)
            for begin in range(0, 12, positions):
                model(ids[:, begin : begin + positions], past_key_values=cache, use_cache=True)
            found.append(handle.summary())
    step_by_step, at_once = found
    assert at_once["distinct_experts_mean"] == step_by_step["distinct_experts_mean"]
    assert energy_j(at_once) == pytest.approx(energy_j(step_by_step), rel=1e-6)
    assert at_once["latency_ms"]["mean"] == pytest.approx(step_by_step["latency_ms"]["mean"], rel=1e-6)


def test_a_prompt_counts_as_one_batch_not_as_one_for_each_position(model):
    """Else a long prompt, whose choices are its own, would hide what the strategy does in decode."""
    with thermoe.attach(model, "opportunistic", settings={"k0": 1}) as handle:
        ids = token_ids(4, 30)
        counts = []
        with torch.no_grad():
            cache = DynamicCache(config=model.config)
            for part in (ids[:, :27], ids[:, 27:28], ids[:, 28:29], ids[:, 29:]):
                model(part, past_key_values=cache, use_cache=True)
                counts.append(handle.hooks.counters.last_forward()[0].mean())
    assert handle.summary()["distinct_experts_mean"] == pytest.approx(sum(counts) / 4)
    assert len(set(counts)) > 1


class Stuck(Meter):
    """A counter that has not moved since the attachment, and power that is known."""

    def read(self):
        state = super().read()
        return type(state)(**(state.as_dict() | {"energy_j": 1000.0, "kind": self.kind}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_counter_that_has_not_moved_is_no_energy_of_zero(monkeypatch, dtype):
    monkeypatch.setattr(attaching, "open_source", lambda *_, **__: Stuck())
    model = copy.deepcopy(tiny_model(NAME)).to(dtype)
    with thermoe.attach(model, "baseline") as handle:
        generate(model)
    summary = handle.summary()
    assert energy_j(summary) * summary["tokens_per_s"] == pytest.approx(300.0, rel=0.05)
    assert summary["bits_mean"] == 8 * dtype.itemsize


def test_the_twin_prices_the_precision_that_is_read_now():
    model = copy.deepcopy(tiny_model(NAME))
    spent = {}
    for experts in (None, "bank", "int2"):
        with thermoe.attach(model, "baseline", telemetry="simulated", experts=experts) as handle:
            generate(model)
            summary = handle.summary()
            spent[experts] = energy_j(summary)
            assert summary["bits_mean"] == {None: 16, "bank": 8, "int2": 2}[experts]
            if experts == "bank":
                handle.experts.set_bits(2)
                assert handle.summary()["bits_mean"] == 2
    assert spent["int2"] < 0.8 * spent["bank"] < 0.8 * spent[None]


def test_an_attachment_takes_moments_and_its_copy_is_closer():
    model, ids = copy.deepcopy(tiny_model(NAME)), token_ids(8, 32, seed=3)
    with torch.no_grad(), MomentWatch(expert_blocks(model)) as watch:
        own = model(ids).logits
    errors = []
    for moments in (None, watch.moments):
        with torch.no_grad(), thermoe.attach(model, "baseline", experts="int2", moments=moments):
            errors.append(float((model(ids).logits - own).square().mean()))
    assert 0 < errors[1] < errors[0]
    with pytest.raises(ConfigError, match="moments are for quantised experts"):
        thermoe.attach(model, "baseline", moments=watch.moments)
    with pytest.raises(ConfigError, match="moments is 3"):
        thermoe.attach(model, "baseline", experts="int2", moments=3)
    with pytest.raises(ConfigError, match="moments of nowhere"):
        thermoe.attach(model, "baseline", experts="int2", moments={"nowhere": None})
    with torch.no_grad():
        assert torch.equal(model(ids).logits, own)


def test_both_names_of_a_format_are_taken_and_one_is_told():
    model = copy.deepcopy(tiny_model(NAME))
    for name in ("fp8_block", "fp8_blocks"):
        with thermoe.attach(model, "baseline", experts=name) as handle:
            assert handle.experts.held_as == "fp8_block"
    with pytest.raises(ConfigError, match=r"'fp8_rows'.*choose from int2, int4, int8, fp8, fp8_block,"):
        thermoe.attach(model, "baseline", experts="fp8_rows")


def test_the_example_of_compensated_experts_runs(capsys):
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (snippet,) = (s for s in snippets if "MomentWatch" in s)
    given = {"model": copy.deepcopy(tiny_model(NAME)), "calibration_ids": token_ids(4, 16)}
    exec(compile(snippet, str(PAGE), "exec"), given)
    assert capsys.readouterr().out == "int2 2\n"
