"""Tables that a simulator wrote, such as LLMCompass's latencies or AccelWattch's powers, as predicted rows.

A table names its columns as `thermoe fit` takes them: `op`; `m, n, k`, or `num_tokens, hidden_size, inter_size, topk,
num_experts` and perhaps `distinct_experts`; `dtype`; `latency_s`, `latency_ms` or `latency_us`; perhaps `power_w` or
`energy_j`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thermoe.cost.cases import DTYPE_BITS
from thermoe.cost.database import CostDatabase, describe
from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.cost.work import OPERATIONS, expected_distinct_experts
from thermoe.errors import ConfigError, DataError
from thermoe.format_names import format_name
from thermoe.types import Kind

_LATENCY_US = {"latency_us": 1.0, "latency_ms": 1e3, "latency_s": 1e6}
_EXPERT_COLUMNS = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
_PRODUCT_COLUMNS = ("m", "n", "k")


def read_simulator_table(path: Path, *, gpu: str, simulator: str) -> CostDatabase:
    """Rows of kind `predicted` from a CSV or parquet table.

    Args:
        path: The table.
        gpu: Which GPU was simulated.
        simulator: By what; it becomes the `impl` of the rows.

    Raises:
        ConfigError: The GPU or the simulator has no name.
        DataError: The table cannot be read, lacks a column, holds what cannot be right, or one case twice.
    """
    if not gpu.strip() or not simulator.strip():
        raise ConfigError(f"gpu {gpu!r} by simulator {simulator!r}: name both")
    lines = _read(path)
    if not lines:
        raise DataError(f"{path}: the table has no rows")
    device = DeviceKey(gpu=gpu, driver="", torch="", triton="", kernel_revision=simulator)
    rows: dict[Any, CostRow] = {}
    for number, line in enumerate(lines):
        try:
            row = _row(line, device, simulator)
        except (DataError, KeyError, TypeError, ValueError, OverflowError) as err:
            reason = f"lacks the column {err}" if isinstance(err, KeyError) else str(err)
            raise DataError(f"{path}: row {number}: {' '.join(reason.split())}") from err
        if rows.setdefault(row.key, row) != row:
            raise DataError(
                f"{path}: row {number} is {describe(row)} again, with other figures: keep one of each, or name what "
                "tells them apart in the sizes"
            )
    return CostDatabase(list(rows.values()))


def _read(path: Path) -> list[dict[Any, Any]]:
    import pandas as pd  # only here: databases need no pandas

    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be read as a table ({' '.join(str(err).split())[:200]})") from err
    return table.to_dict("records")


def _row(line: Mapping[Any, Any], device: DeviceKey, simulator: str) -> CostRow:
    latency_us = next((float(line[c]) * f for c, f in _LATENCY_US.items() if c in line), None)
    if latency_us is None:
        raise DataError(f"lacks a latency: name one of {', '.join(_LATENCY_US)}")
    energy_mj = _energy_mj(line, latency_us)
    return CostRow(
        device=device,
        op=_known(line, "op", "gemm" if "m" in line else "expert_mlp", OPERATIONS),
        impl=simulator,
        dtype=_format(line),
        skew=1.0,
        latency_us=latency_us,
        latency_low_us=latency_us,
        latency_high_us=latency_us,
        repeats=1,
        spread_pct=0.0,
        input_distribution="none: simulated",
        kind=Kind.PREDICTED,
        energy_mj=energy_mj,
        power_w=None if energy_mj is None else energy_mj * 1e3 / latency_us,
        **_sizes(line),
    )


def _sizes(line: Mapping[Any, Any]) -> dict[str, Any]:
    if all(name in line for name in _PRODUCT_COLUMNS):
        rows, columns, depth = (_whole(line, name) for name in _PRODUCT_COLUMNS)
        sizes = {"hidden_size": depth, "inter_size": columns, "num_experts": 1, "top_k": 1}
        return sizes | {"tokens": rows, "routed_rows": rows, "active_experts": 1}
    tokens, hidden_size, inter_size, top_k, num_experts = (_whole(line, name) for name in _EXPERT_COLUMNS)
    if top_k > num_experts:
        raise DataError(f"topk = {top_k}: more than the {num_experts} experts there are")
    if "distinct_experts" in line:
        touched = _whole(line, "distinct_experts")
    else:
        touched = max(1, round(float(expected_distinct_experts(num_experts, top_k, tokens))))
    sizes = {"hidden_size": hidden_size, "inter_size": inter_size, "num_experts": num_experts, "top_k": top_k}
    return sizes | {"tokens": tokens, "routed_rows": tokens * top_k, "active_experts": touched}


def _known(line: Mapping[Any, Any], name: str, usual: str, choices: Iterable[str]) -> str:
    """A word that a model understands."""
    word = str(line.get(name, usual))
    if word not in choices:
        raise DataError(f"{name} {word} is not known: choose from {', '.join(choices)}")
    return word


def _format(line: Mapping[Any, Any]) -> str:
    name = format_name(str(line.get("dtype", "bfloat16")))
    return _known({"dtype": name}, "dtype", name, DTYPE_BITS)


def _whole(line: Mapping[Any, Any], name: str) -> int:
    value = float(line[name])
    if not np.isfinite(value) or value != int(value) or value < 1:
        raise DataError(f"{name} = {value:g}: needs a whole number of at least 1")
    return int(value)


def _energy_mj(line: Mapping[Any, Any], latency_us: float) -> float | None:
    for name, factor in (("energy_j", 1e3), ("power_w", latency_us * 1e-3)):
        if name in line and not np.isnan(float(line[name])):
            return float(line[name]) * factor
    return None
