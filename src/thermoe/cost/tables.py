"""Plain tables as observations: columns named by what they are, of MoE layers or of matrix products."""

from typing import TYPE_CHECKING, Any

import numpy as np

from thermoe.cost.boards import same_board
from thermoe.cost.cases import DTYPE_BITS, Cases
from thermoe.cost.loads import Loads, even_loads, many_named_loads, power_law_exponent
from thermoe.cost.observations import Observations
from thermoe.cost.work import OPERATIONS
from thermoe.errors import DataError
from thermoe.format_names import format_name
from thermoe.types import FloatArray

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

MOE_COLUMNS = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
GEMM_COLUMNS = ("m", "n", "k")
_DTYPES = ("dtype", "gemm_dtype", "moe_dtype")
_TELEMETRY = ("temp_c",)
_LATENCIES = ("latency_s", "latency_ms", "latency_us")
# Beyond, products and ratios of figures would overflow in a fit; routings are drawn expert by expert, in whole numbers.
_USUAL_SPAN = (1e-30, 1e30)
_SPANS = {
    "num_tokens": (1e-30, 2.0**40),
    "topk": (1e-30, 2.0**16),
    "num_experts": (1e-30, 2.0**14),
    "moe_ep_size": (1e-30, 2.0**16),
}


def group_table(table: "pd.DataFrame") -> dict[str, Observations]:
    """Observations of a plain table by operation, as `thermoe fit` takes it.

    The sizes say what it is: `m, n, k` a matrix product, else an MoE layer, whose operation a column `op` may name.
    Loads come from `distinct_experts` where there is one, else from `distribution`, else from random routing.

    Raises:
        DataError: Columns are missing or hold what cannot be right.
    """
    latency = next((c for c in _LATENCIES if c in table), None)
    is_product = all(c in table for c in GEMM_COLUMNS)
    missing = [] if is_product else [c for c in MOE_COLUMNS if c not in table]
    if missing or latency is None:
        raise DataError(
            f"the table lacks {', '.join([*missing, *([] if latency else ['latency_s or latency_ms'])])}; a table of "
            f"MoE layers needs {', '.join(MOE_COLUMNS)}, one of products {', '.join(GEMM_COLUMNS)}, both a latency"
        )
    if not len(table):
        raise DataError("the table has no rows")
    scale = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6}[latency]
    latency_s = _column(table, latency) * scale
    energy_j = _energy(table, latency_s)
    ops = _ops(table, "gemm" if is_product else "expert_mlp")
    found: dict[str, Observations] = {}
    for op in dict.fromkeys(ops):
        rows = np.array([i for i, o in enumerate(ops) if o == op])
        part = table.iloc[rows]
        cases = _products(op, part) if is_product else _layers(op, part)
        temp_c = _column(part, "temp_c", may_be_missing=True) if "temp_c" in part else np.full(len(rows), np.nan)
        # One latency alone: whatever throttling there was is in it already.
        throttled = np.zeros(len(rows), dtype=np.bool_)
        found[op] = Observations(
            cases, latency_s[rows], latency_s[rows], energy_j[rows], temp_c, throttled, same_board(len(rows))
        )
    return found


def group_arrays(
    telemetry: "pd.DataFrame | None",
    shapes: "pd.DataFrame",
    latency_s: "ArrayLike | None",
    energy_j: "ArrayLike | None",
) -> dict[str, Observations]:
    """Observations of shapes, targets and telemetry given apart, one row each (B,).

    Args:
        telemetry: May hold `temp_c` [deg C]; None for no telemetry.
        shapes: Columns of sizes as in a plain table.
        latency_s, energy_j: Targets [s], [J]; energy may hold NaN, or be None.

    Raises:
        DataError: Lengths differ, or values cannot be right.
    """
    if latency_s is None:
        raise DataError("shapes were given without their latency: give y_latency in seconds")
    for name, table in (("X_telemetry", telemetry), ("X_shape", shapes)):
        if table is not None and not hasattr(table, "columns"):
            raise DataError(f"{name} is a {type(table).__name__}: needs a pandas table, a row for each measurement")
    columns = {"latency_s": _target("y_latency", latency_s)}
    if energy_j is not None:
        columns["energy_j"] = _target("y_energy", energy_j)
    lengths = [len(shapes), *(len(c) for c in columns.values()), *([] if telemetry is None else [len(telemetry)])]
    if len(set(lengths)) > 1:
        raise DataError(f"shapes, targets and telemetry have {', '.join(map(str, lengths))} rows: need the same")
    known = {} if telemetry is None else {c: telemetry[c].to_numpy() for c in _TELEMETRY if c in telemetry}
    plain = shapes.drop(columns=[c for c in (*_LATENCIES, "power_w") if c in shapes])
    return group_table(plain.assign(**columns, **known))


def cases_of_table(op: str, table: "pd.DataFrame") -> Cases:
    """Cases of a table of shapes, whatever else it holds."""
    return _products(op, table) if all(c in table for c in GEMM_COLUMNS) else _layers(op, table)


def _products(op: str, table: "pd.DataFrame") -> Cases:
    m, ones = _column(table, "m"), np.ones(len(table))
    return Cases(
        op=op,
        impl=_impls(table),
        dtype=_dtypes(table),
        hidden_size=_column(table, "k"),
        inter_size=_column(table, "n"),
        num_experts=ones,
        top_k=ones,
        tokens=m,
        loads=even_loads(m, ones, ones),
        context=ones,
        ranks=ones,
        splits=ones,
        skew=np.zeros(len(table)),
    )


def _layers(op: str, table: "pd.DataFrame") -> Cases:
    tokens, top_k, num_experts = (_column(table, c) for c in ("num_tokens", "topk", "num_experts"))
    ranks = _column(table, "moe_ep_size") if "moe_ep_size" in table else np.ones(len(table))
    splits = _column(table, "moe_tp_size") if "moe_tp_size" in table else np.ones(len(table))
    if (top_k > num_experts).any():
        raise DataError(
            f"the table's row {int((top_k > num_experts).argmax())} has more experts per token than experts"
        )
    if (num_experts % ranks != 0).any():
        raise DataError("the table's column moe_ep_size must divide num_experts")
    names = [str(d) for d in table["distribution"]] if "distribution" in table else ["random"] * len(table)
    return Cases(
        op=op,
        impl=_impls(table),
        dtype=_dtypes(table),
        hidden_size=_column(table, "hidden_size"),
        inter_size=_column(table, "inter_size") / splits,
        num_experts=num_experts / ranks,
        top_k=top_k,
        tokens=tokens,
        loads=_loads(table, names, tokens, top_k, num_experts, ranks),
        context=np.ones(len(table)),
        ranks=ranks,
        splits=splits,
        skew=np.array([power_law_exponent(n) for n in names]),
    )


def _loads(
    table: "pd.DataFrame",
    names: list[str],
    tokens: FloatArray,
    top_k: FloatArray,
    num_experts: FloatArray,
    ranks: FloatArray,
) -> Loads:
    if "distinct_experts" in table:
        distinct = _column(table, "distinct_experts")
        if (distinct > num_experts / ranks).any():
            row = int((distinct > num_experts / ranks).argmax())
            raise DataError(f"the table's row {row} touches {distinct[row]:g} experts: more than a GPU holds")
        return even_loads(tokens * top_k / ranks, distinct, np.ones(len(table)))
    whole = [(tokens, "num_tokens"), (top_k, "topk"), (num_experts, "num_experts"), (ranks, "moe_ep_size")]
    for values, name in whole:
        if (values % 1 != 0).any():
            raise DataError(f"the table's column {name} needs whole numbers")
    return many_named_loads(names, tokens, top_k, num_experts, ranks)


def _energy(table: "pd.DataFrame", latency_s: FloatArray) -> FloatArray:
    if "energy_j" in table:
        return _column(table, "energy_j", may_be_missing=True)
    if "power_w" in table:
        return _column(table, "power_w", may_be_missing=True) * latency_s
    return np.full(len(table), np.nan)


def _ops(table: "pd.DataFrame", usual: str) -> list[str]:
    ops = [str(o) for o in table["op"]] if "op" in table else [usual] * len(table)
    unknown = sorted(set(ops) - set(OPERATIONS))
    if unknown:
        raise DataError(f"the table's op {', '.join(unknown)} is not known: choose from {', '.join(OPERATIONS)}")
    return ops


def _dtypes(table: "pd.DataFrame") -> list[str]:
    column = next((c for c in _DTYPES if c in table), None)
    dtypes = [format_name(str(d)) for d in table[column]] if column else ["bfloat16"] * len(table)
    unknown = sorted(set(dtypes) - set(DTYPE_BITS))
    if unknown:
        raise DataError(f"the table's dtype {', '.join(unknown)} is not known: choose from {', '.join(DTYPE_BITS)}")
    return dtypes


def _impls(table: "pd.DataFrame") -> list[str]:
    column = next((c for c in ("kernel_source", "impl") if c in table), None)
    return [str(i) for i in table[column]] if column else ["table"] * len(table)


def _target(name: str, values: "ArrayLike") -> FloatArray:
    """A column of targets (B,)."""
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise DataError(f"{name} holds something other than numbers") from err
    if column.ndim == 0 or column.size != len(column):
        raise DataError(f"{name} has the shape {column.shape}: needs one number for each row")
    return column.ravel()


def _column(table: "pd.DataFrame", name: str, *, may_be_missing: bool = False) -> FloatArray:
    values: Any
    try:
        values = table[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise DataError(f"the table's column {name} holds something other than numbers") from err
    if values.ndim != 1:
        raise DataError(f"the table has {values.shape[1]} columns named {name}: keep one")
    low, high = _SPANS.get(name, _USUAL_SPAN)
    wrong = ~((values >= low) & (values <= high)) & ~(may_be_missing & np.isnan(values))
    if wrong.any():
        raise DataError(
            f"the table's column {name} holds {values[wrong][0]:g} in row {int(wrong.argmax())}: needs positive "
            f"numbers, {high:g} at most"
        )
    return np.asarray(values, dtype=np.float64)
