"""`thermoe costs plot`: what cost databases hold, drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thermoe.cost.arguments import Files
from thermoe.cost.database import CostDatabase
from thermoe.cost.database_command import listed
from thermoe.cost.rows import CostRow, without_smoke
from thermoe.cost.safe_file import replacing
from thermoe.cost.shipped import located
from thermoe.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".pdf", ".png")
MARKERS = "os^Dv<>Ph*X"
_MOST_SERIES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsPlot:
    """Draw cost databases: time and energy against bytes, bandwidth and power against arithmetic intensity.

    Attributes:
        databases: `.costs.json` files.
        out: .svg, .pdf or .png.
        ops: Only these operations, listed with commas or spaces; "expert_mlp" where there is one, else all, if empty.
        by: What colours tell apart: "dtype", "op", "impl", "shape" or "gpu".
    """

    databases: Files
    out: Path
    ops: tuple[str, ...] = ()
    by: str = "dtype"

    def __post_init__(self) -> None:
        if self.out.suffix not in SUFFIXES:
            raise ConfigError(f"{self.out}: name a file that ends in {', '.join(SUFFIXES)}")
        if self.by not in _SERIES:
            raise ConfigError(f"by {self.by}: choose from {', '.join(_SERIES)}")
        if not self.databases:
            raise ConfigError("no database was named: give one or more .costs.json files")

    def execute(self) -> int:
        """Draw and write."""
        rows = measured_or_predicted(self.databases)
        figure = draw_costs(choose_rows(rows, listed(self.ops)), self.by)
        with replacing(self.out) as scratch:
            figure.savefig(scratch, format=self.out.suffix[1:])
        print(f"{self.out}: written")
        return 0


def measured_or_predicted(databases: Sequence[Path]) -> list[CostRow]:
    """Rows of all files, each file once, without those of smoke runs, which measure nothing."""
    files = dict.fromkeys(located(path).resolve() for path in databases)
    return without_smoke(row for path in files for row in CostDatabase.load(path).rows)


def choose_rows(rows: Sequence[CostRow], ops: Sequence[str]) -> list[CostRow]:
    """Rows of the operations asked for that count their bytes.

    Raises:
        ConfigError: An operation that no row has.
        DataError: Nothing is left to draw.
    """
    known = {row.op for row in rows}
    unknown = sorted(set(ops) - known)
    if unknown:
        raise ConfigError(f"no row of operation {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    wanted = set(ops) or ({"expert_mlp"} if "expert_mlp" in known else known)
    chosen = [row for row in rows if row.op in wanted and row.bytes_moved]
    if not chosen:
        raise DataError("no row that counts its bytes: nothing to draw")
    return chosen


def draw_costs(rows: Sequence[CostRow], by: str) -> "Figure":
    """Four panels, a colour for each value of `by`, the kind of the figures in the title."""
    from matplotlib import rc_context

    from thermoe.analysis.style import RC, panels, stamp

    series: dict[str, list[CostRow]] = {}
    kinds = sorted({str(row.kind) for row in rows})
    for row in rows:
        kind = f" ({row.kind})" if len(kinds) > 1 else ""
        series.setdefault(_SERIES[by](row) + kind, []).append(row)
    if len(series) > _MOST_SERIES:
        kept = sorted(series, key=lambda name: -len(series[name]))[: _MOST_SERIES - 1]
        rest = [row for name, mine in series.items() if name not in kept for row in mine]
        series = {name: series[name] for name in kept} | {f"others ({' and '.join(kinds)})": rest}
    with rc_context(RC):
        figure, axes = panels(4, height_in=2.5)
        for ax, (xlabel, ylabel, x_of, y_of) in zip(axes, _PANELS, strict=True):
            _draw_panel(ax, series, x_of, y_of, log_y=y_of is not _power_w)
            ax.set_xlabel(xlabel)
            ax.set_ylabel(ylabel)
        axes[0].legend(loc="upper left")
        gpus = ", ".join(dict.fromkeys(row.device.gpu for row in rows))
        ops = ", ".join(dict.fromkeys(row.op for row in rows))
        stamp(figure, f"{ops} on {gpus}; {len(rows)} rows, {' and '.join(kinds)}")
    return figure


_Value = Callable[[CostRow], float | None]


def _draw_panel(ax: "Axes", series: dict[str, list[CostRow]], x_of: _Value, y_of: _Value, *, log_y: bool) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for index, (name, rows) in enumerate(series.items()):
        points = [(x, y) for row in rows if (x := x_of(row)) and (y := y_of(row))]
        if points:
            places, values = ([point[i] for point in points] for i in (0, 1))
            marker, color = MARKERS[index % len(MARKERS)], f"C{index % 10}"
            ax.scatter(places, values, s=7, alpha=0.7, linewidths=0, label=name, marker=marker, color=color)
    ax.set_xscale("log")
    ax.set_yscale("log" if log_y else "linear")
    for axis in (ax.xaxis, ax.yaxis) if log_y else (ax.xaxis,):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _intensity(row: CostRow) -> float | None:
    return row.flops / row.bytes_moved if row.flops and row.bytes_moved else None


def _bandwidth_tb_s(row: CostRow) -> float | None:
    return row.bytes_moved / row.latency_us * 1e-6 if row.bytes_moved else None


def _power_w(row: CostRow) -> float | None:
    return row.power_w


_PANELS: tuple[tuple[str, str, _Value, _Value], ...] = (
    ("least traffic [MB]", "latency [us]", lambda r: (r.bytes_moved or 0) / 1e6, lambda r: r.latency_us),
    ("least traffic [MB]", "energy [mJ]", lambda r: (r.bytes_moved or 0) / 1e6, lambda r: r.energy_mj),
    ("operations per byte", "traffic over time [TB/s]", _intensity, _bandwidth_tb_s),
    ("operations per byte", "board power [W]", _intensity, _power_w),
)
_SERIES: dict[str, Callable[[CostRow], str]] = {
    "dtype": lambda r: r.dtype,
    "op": lambda r: r.op,
    "impl": lambda r: f"{r.op}/{r.impl}",
    "shape": lambda r: f"D{r.hidden_size} I{r.inter_size} E{r.num_experts} k{r.top_k}",
    "gpu": lambda r: r.device.gpu,
}
