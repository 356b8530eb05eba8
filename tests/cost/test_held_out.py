"""Shapes left out: what a row is compared with when the power limit held its energy window back but not its latency."""

import numpy as np
import pytest
from cost_rows import make_row

from thermoe.cost.database import CostDatabase
from thermoe.cost.held_out import held_out
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.rows import DeviceKey

IDLE_W, LIMIT_W = 75.0, 700.0
DYNAMIC_J_PER_FLOP = 1.5e-12  # at 600 TFLOP/s 900 W above idle: more than the limit allows
PEAK_FLOP_PER_S = 600e12


def products(*, with_energy: bool) -> CostDatabase:
    """Matrix products of a made-up board whose clock falls until the limit holds; every second row without energy."""
    rows = []
    for n in (2048, 3072, 4096, 6144, 8192):
        for k in (2048, 4096, 8192):
            for number, m in enumerate((1024, 2048, 4096, 8192)):
                flops = 2.0 * m * n * k
                short_s = 8e-6 + flops / PEAK_FLOP_PER_S
                excess = max(flops * DYNAMIC_J_PER_FLOP / short_s / (LIMIT_W - IDLE_W), 1.0)
                long_s, energy_j = short_s * excess**0.5, None
                if number % 2 == 0 and with_energy:
                    energy_j = flops * DYNAMIC_J_PER_FLOP / excess**0.5 + IDLE_W * long_s
                rows.append(
                    make_row(
                        short_s * 1e6,
                        device=DeviceKey(gpu="NVIDIA H200", driver="1", torch="2", triton="3", kernel_revision="1"),
                        op="gemm",
                        impl="torch",
                        hidden_size=k,
                        inter_size=n,
                        num_experts=1,
                        top_k=1,
                        tokens=m,
                        routed_rows=m,
                        active_experts=1,
                        skew=1.0,
                        latency_sustained_us=None if energy_j is None else long_s * 1e6,
                        energy_mj=None if energy_j is None else energy_j * 1e3,
                        power_w=None if energy_j is None else energy_j / long_s,
                        throttled=None if energy_j is None else excess > 1.0,
                    )
                )
    return CostDatabase(rows)


@pytest.mark.parametrize("with_energy", [True, False])
def test_latencies_alone_are_those_of_full_clock(with_energy):
    found = held_out(products(with_energy=with_energy), num_folds=5)["gemm"]
    errors = np.abs(np.log(found.latency_s / found.measured_s))
    has_energy = np.isfinite(found.measured_j)
    assert has_energy.any() == with_energy
    assert (~has_energy).sum() >= 30
    assert np.median(errors[~has_energy]) < 0.03
    if with_energy:
        assert np.median(errors[has_energy]) < 0.05
        assert np.median(np.abs(np.log(found.energy_j / found.measured_j))[has_energy]) < 0.08


def test_repetitions_of_one_case_leave_nothing_out():
    rows = products(with_energy=True).rows[:1] * 10
    fitted = KernelCostModel().fit(CostDatabase(rows)).operations_["gemm", "torch", "bfloat16"]
    assert (fitted.latency_log_error, fitted.energy_log_error) == (None, None)
    assert (fitted.num_rows, fitted.num_energy_rows) == (10, 10)
