"""What a step of work demands of the simulated GPU before its power limit and its heat have a say.

Every figure is measured on one H200 (700 W limit, torch 2.11, triton 3.6) unless its comment calls it an assumption.
The cost model must not read this file: it would then predict itself.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from thermoe.errors import ConfigError
from thermoe.types import NAMED_SHAPES, FloatArray, MoEShape, StepWork

IDLE_POWER_W = 117.0  # context held
MAX_CLOCK_MHZ = 1980.0
READ_BANDWIDTH_BYTES_PER_S = 4.38e12  # pure reads of 4 GiB

# A bf16 matrix product at the power limit ran at 1545 MHz and 664 TFLOP/s, in a short burst at 788 TFLOP/s.
CAPPED_CLOCK_RATIO = 1545.0 / MAX_CLOCK_MHZ
SPEED_EXPONENT = math.log(664.0 / 788.0) / math.log(CAPPED_CLOCK_RATIO)  # speed ~ clock ** 0.69
# Assumption: supply voltage squared falls in proportion to the clock near the top of its range.
ENERGY_EXPONENT = 1.0

_TABLE_SHAPE = NAMED_SHAPES["qwen3-30b-a3b"]
_TABLE_BITS = 16.0

# One MoE layer, torch grouped matrix product, bf16, D 2048, I 768, in a CUDA graph of 12 layers:
# routed rows -> (experts touched, microseconds, millijoules).
_LAYER_TABLE: dict[int, tuple[list[float], list[float], list[float]]] = {
    8: ([1, 2, 4, 8], [28, 30, 35, 53], [6.0, 7.9, 12.0, 22.3]),
    128: ([8, 16, 32, 64, 96, 128], [50, 75, 127, 230, 348, 453], [21.9, 39.4, 75.2, 147, 218, 288]),
    1024: ([8, 32, 128], [52, 130, 411], [28.7, 82.8, 283]),
    32768: ([8, 64, 128], [655, 694, 735], [470, 476, 511]),
}
_ROWS_AT_POWER_LIMIT = 32768
_EXPERT_GRID = np.array([0.0, 1, 2, 4, 8, 16, 32, 64, 96, 128])

# The rest of a bf16 decode step (attention, norms, head, small kernels), 48 layers, 16 tokens: a vLLM step takes
# 12.8 ms and 7.65 J, of which its experts take 48 x 199 us and 77 %.
_REST_LATENCY_S = 12.8e-3 - 48 * 199e-6
_REST_ENERGY_J = 7.65 * 0.23
_REST_TOKENS = 16
# Of the rest a quarter is its own memory floor (weights of attention and head); the other three quarters are launches.
_REST_BYTES_SHARE = 0.25
_REST_BYTES_PER_S = 4.3e12
_BYTE_ENERGY_J = 155e-12
# Matrix products of attention and head, per layer and squared width: 1.22 G parameters in 48 layers of width 2048.
_REST_FLOPS_PER_TOKEN_LAYER_WIDTH2 = 2 * 1.22e9 / (48 * 2048**2)
_MATMUL_FLOP_PER_S = 788e12
# 1.04 pJ a FLOP at the power limit, brought to free clocks as in `_free_running`.
_MATMUL_ENERGY_J_PER_FLOP = (1.04e-12 - IDLE_POWER_W / 664e12) / CAPPED_CLOCK_RATIO**ENERGY_EXPONENT + (
    IDLE_POWER_W / _MATMUL_FLOP_PER_S
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What a step takes at the highest clock and with no limit, at the temperature of the measurements.

    Attributes:
        experts_latency_s, rest_latency_s: Time of the MoE layers and of everything else [s].
        experts_energy_j, rest_energy_j: Board energy of both, idle power included [J].
        bytes_read: Weights read from memory [byte].
    """

    experts_latency_s: float
    rest_latency_s: float
    experts_energy_j: float
    rest_energy_j: float
    bytes_read: float


def step_demand(work: StepWork) -> Demand:
    """Price one step on the layers of `work.shape`.

    Raises:
        ConfigError: Where the work's lists are empty, differ in length or hold what cannot be counted.
    """
    experts, rows = _checked(work)
    shape = work.shape
    size = shape.hidden_size * shape.inter_size / (_TABLE_SHAPE.hidden_size * _TABLE_SHAPE.inter_size)
    latency_s, energy_j = layer_demand(rows * size, experts * size * work.bits / _TABLE_BITS)
    rest_latency_s, rest_energy_j, rest_bytes = _rest_demand(shape, work.num_tokens)
    return Demand(
        experts_latency_s=float(latency_s.sum()),
        rest_latency_s=rest_latency_s,
        experts_energy_j=float(energy_j.sum()),
        rest_energy_j=rest_energy_j,
        bytes_read=float(experts.sum()) * shape.expert_bytes(work.bits) + rest_bytes,
    )


def layer_demand(rows: FloatArray, experts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Latency [s] and energy [J] of MoE layers, from the measured table.

    Linear in experts, linear between the logarithms in rows. Both are counted in units of the
    table's experts (2048 x 768, bf16): a layer of another size or precision enters with the experts
    that have as many bytes and the rows that take as many operations. The part that does not shrink
    with either is the cost of launching.

    Args:
        rows: (L,) routed rows.
        experts: (L,) experts touched.
    """
    row_grid, latency_grid, energy_grid = _layer_grid()
    position = np.log(np.clip(rows, row_grid[0], row_grid[-1]))
    low = np.clip(np.searchsorted(np.log(row_grid), position, side="right") - 1, 0, len(row_grid) - 2)
    weight = (position - np.log(row_grid)[low]) / (np.log(row_grid)[low + 1] - np.log(row_grid)[low])
    beyond = np.maximum(rows / row_grid[-1], 1.0)  # compute-bound from there on
    layers = np.arange(len(rows))

    def between(table: FloatArray) -> FloatArray:
        logs = np.log(_along_experts(table, experts))
        mixed: FloatArray = beyond * np.exp((1.0 - weight) * logs[low, layers] + weight * logs[low + 1, layers])
        return mixed

    return between(latency_grid), between(energy_grid)


def _checked(work: StepWork) -> tuple[FloatArray, FloatArray]:
    experts, rows = np.asarray(work.distinct_experts, dtype=float), np.asarray(work.routed_rows, dtype=float)
    if experts.shape != rows.shape or experts.shape != (work.shape.num_layers,):
        raise ConfigError(
            f"step work has {experts.size} expert counts and {rows.size} row counts; "
            f"needs {work.shape.num_layers}, one per layer"
        )
    if not (np.isfinite(experts).all() and np.isfinite(rows).all() and (experts >= 0).all() and (rows >= 0).all()):
        raise ConfigError("step work holds a negative, infinite or NaN count: each needs a finite number, 0 or more")
    if not (work.num_tokens >= 0 and math.isfinite(work.bits) and work.bits > 0):
        raise ConfigError(f"step work of {work.num_tokens} tokens at {work.bits} bits: needs tokens >= 0 and bits > 0")
    return experts, rows


def _rest_demand(shape: MoEShape, num_tokens: int) -> tuple[float, float, float]:
    """Latency [s], energy [J] and bytes of everything but the experts; tokens beyond 16 add their operations."""
    depth = shape.num_layers / _TABLE_SHAPE.num_layers
    width2 = (shape.hidden_size / _TABLE_SHAPE.hidden_size) ** 2
    read_s = _REST_LATENCY_S * _REST_BYTES_SHARE
    read_j = read_s * _REST_BYTES_PER_S * _BYTE_ENERGY_J
    flops = _REST_FLOPS_PER_TOKEN_LAYER_WIDTH2 * shape.num_layers * shape.hidden_size**2
    flops *= max(num_tokens - _REST_TOKENS, 0)
    latency_s = depth * (_REST_LATENCY_S - read_s + read_s * width2) + flops / _MATMUL_FLOP_PER_S
    energy_j = depth * (_REST_ENERGY_J - read_j + read_j * width2) + flops * _MATMUL_ENERGY_J_PER_FLOP
    return latency_s, energy_j, depth * width2 * read_s * _REST_BYTES_PER_S


@lru_cache(maxsize=1)
def _layer_grid() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Row counts (4,), latency [s] and energy [J] (4, grid) with every gap of the table filled."""
    latency, energy = [], []
    for rows, (experts, micros, millis) in _LAYER_TABLE.items():
        time_s, joules = np.array(micros) * 1e-6, np.array(millis) * 1e-3
        if rows == _ROWS_AT_POWER_LIMIT:
            time_s, joules = _free_running(time_s, joules)
        latency.append(_completed(np.array(experts), time_s, 1, 1e-6))
        energy.append(_completed(np.array(experts), joules, 2, 1e-3))
    return np.array(list(_LAYER_TABLE), dtype=float), np.array(latency), np.array(energy)


def _free_running(time_s: FloatArray, energy_j: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What was measured with clocks held down by the power limit, as it would be at the highest clock."""
    free_s = time_s * CAPPED_CLOCK_RATIO**SPEED_EXPONENT
    dynamic_j = (energy_j - IDLE_POWER_W * time_s) / CAPPED_CLOCK_RATIO**ENERGY_EXPONENT
    return free_s, dynamic_j + IDLE_POWER_W * free_s


def _completed(experts: FloatArray, values: FloatArray, column: int, unit: float) -> FloatArray:
    """A row of the table on the whole expert grid: outside what was measured it runs parallel to the decode rows."""
    few, many = _LAYER_TABLE[8], _LAYER_TABLE[128]
    few_values, many_values = np.array(few[column]) * unit, np.array(many[column]) * unit
    zero = few_values[0] - (few_values[1] - few_values[0])
    decode = np.concatenate([[zero], few_values, few_values[-1] + many_values[1:] - many_values[0]])
    inside = np.interp(_EXPERT_GRID, experts, values)
    nearest = np.interp(np.clip(_EXPERT_GRID, experts[0], experts[-1]), _EXPERT_GRID, decode)
    completed: FloatArray = inside + decode - nearest
    return completed


def _along_experts(table: FloatArray, experts: FloatArray) -> FloatArray:
    """Interpolate (4, grid) at (L,) expert counts to (4, L); beyond the grid the last slope goes on."""
    last = (table[:, -1] - table[:, -2]) / (_EXPERT_GRID[-1] - _EXPERT_GRID[-2])
    over = np.maximum(experts - _EXPERT_GRID[-1], 0.0)
    inside = np.stack([np.interp(experts, _EXPERT_GRID, row) for row in table])
    values: FloatArray = inside + last[:, None] * over
    return values
