"""Memory-bound operations of a made-up device, shapes left out: what kernels, the cache and the watts make of them."""

from dataclasses import replace

import numpy as np
import pytest
from cost_rows import make_row

from thermoe.cost.database import CostDatabase
from thermoe.cost.features import _ROTATED
from thermoe.cost.held_out import Predictions, held_out
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.kernels import HUGE, HUGE_BYTES
from thermoe.cost.pricing import correction_inputs
from thermoe.cost.work import cases_of
from thermoe.profiling.in_process import Protocol
from thermoe.types import MoEShape

WIDTHS = (1024, 1536, 2048, 2880, 4096, 5120, 6144, 7168)
COUNTS = (1, 4, 16, 64, 256, 1024, 2048, 4096, 16384, 32768, 65536)
MOST = 1 << 28  # numbers of one operand


def copy_of(rows: int, width: int):
    """1 us and 4.2 TB/s, 2.75 for half a gibibyte; 0.6 us less from the cache; power follows the rate.

    Half of them have energy.
    """
    moved = 4.0 * rows * width
    slow = 1.53 if 2 * rows * width >= HUGE_BYTES else 1.0
    in_cache = 1.0 / (1.0 + (96 * moved / 40e6) ** 6)
    latency_s = 1e-6 + slow * moved / 4.2e12 + 0.6e-6 * (1 - in_cache)
    power_w = 122.0 + 150.0 * moved / (moved + 4e6) + 300.0 * moved / latency_s / 4.38e12
    row = make_row(
        latency_s * 1e6,
        op="copy",
        impl="torch",
        hidden_size=width,
        inter_size=1,
        num_experts=1,
        top_k=1,
        tokens=rows,
        routed_rows=rows,
        active_experts=1,
        skew=1.0,
        latency_sustained_us=latency_s * 1e6,
        bytes_moved=moved,
    )
    has_energy = (np.log2(rows) + WIDTHS.index(width)) % 4 < 2
    return replace(row, energy_mj=power_w * latency_s * 1e3, power_w=power_w) if has_energy else row


@pytest.fixture(scope="module")
def rows():
    made = [copy_of(count, width) for width in WIDTHS for count in COUNTS if count * width <= MOST]
    return [*made, copy_of(524288, 2048)]


@pytest.fixture(scope="module")
def left_out(rows) -> Predictions:
    return held_out(CostDatabase(rows), 4)["copy"]


def test_huge_copies_are_told_by_one_other(rows, left_out):
    assert sum(2 * r.tokens * r.hidden_size >= HUGE_BYTES for r in rows) == 2
    huge = np.char.endswith(left_out.name, HUGE)
    assert huge.sum() == 2
    assert left_out.latency_s[huge] == pytest.approx(left_out.measured_s[huge], rel=0.12)


def test_energies_are_those_of_the_corrected_latency(left_out):
    """The law knows no cache: where the correction takes time away, the same bytes in less of it are more watts."""
    known = np.isfinite(left_out.measured_j)
    latency = left_out.latency_s / left_out.measured_s - 1
    energy = left_out.energy_j[known] / left_out.measured_j[known] - 1
    assert known.sum() > 40
    assert np.mean(np.abs(latency)) < 0.008
    assert np.mean(np.abs(energy)) < 0.01


def test_intervals_hold_and_no_more(left_out):
    known = np.isfinite(left_out.measured_j)
    for said, truth, half in (
        (left_out.latency_s, left_out.measured_s, left_out.latency_half),
        (left_out.energy_j[known], left_out.measured_j[known], left_out.energy_half[known]),
    ):
        assert np.mean(np.abs(np.log(said / truth)) <= half) > 0.8
        assert np.median(half) < 0.15
        assert np.max(half) < 1.5


def test_the_profiler_rotates_through_as_many_activations_as_the_features_say():
    assert Protocol().max_steps == _ROTATED


def test_beside_neighbours_no_interval_is_wider_than_that_of_the_law_alone(rows):
    model = KernelCostModel().fit(CostDatabase(rows))
    correction = replace(model.corrections_["copy"], growth=(3.0, 3.0))
    near, far = (MoEShape(num_layers=1, hidden_size=d, inter_size=1, num_experts=1, top_k=1) for d in (2048, 100_000))
    for shape, beyond in ((near, 0.0), (far, np.log(100_000 / 7168))):
        cases = cases_of("copy", shape, 700.0, 1.0, impl="torch")
        inputs = correction_inputs(cases, model.operations_, model.limits)
        alone, bound = correction.answer(inputs).log_error[0], np.array([0.004, 0.002])
        assert (alone > bound * (1 + beyond)).all()
        assert correction.excess(inputs)[0] == pytest.approx(beyond)
        told = correction.answer(inputs, (0.004, 0.002)).log_error[0]
        assert told == pytest.approx(bound * (1 + beyond))
