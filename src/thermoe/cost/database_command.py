"""`thermoe costs show|merge|predict|import`: cost databases from a shell; `diff_command` has `diff`."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from thermoe.cost.arguments import Files
from thermoe.cost.database import CostDatabase, describe
from thermoe.cost.published import carry_over
from thermoe.cost.rows import CostRow
from thermoe.cost.safe_file import refuse_to_overwrite
from thermoe.cost.shipped import SHIPPED, SUFFIX, shipped_databases
from thermoe.cost.simulator_table import read_simulator_table
from thermoe.errors import ConfigError
from thermoe.format_names import format_name

MOST_ROWS = 50
"""A longer database is summed up unless its rows are asked for."""
_H200 = re.compile(r"\bH200\b")  # a GH200 is another GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsShow:
    """Print a cost database: its devices, a line for each operation, and its rows if they are few or asked for.

    Without a database, print where the shipped ones lie.

    Attributes:
        database: `.costs.json` file, or the name of a shipped one.
        ops: Only these operations, listed with commas or spaces.
        dtypes: Only these formats.
        energy: Only rows with energy.
        rows: Print the rows, however many.
        json: Print JSON, one object per row.
    """

    database: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[FILE]")] = None
    ops: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    energy: bool = False
    rows: bool = False
    json: bool = False

    def execute(self) -> int:
        """Print."""
        if self.database is None:
            return self._list_shipped()
        costs = CostDatabase.load(self.database)
        _refuse_unknown("operation", listed(self.ops), {r.op for r in costs.rows})
        _refuse_unknown("dtype", self._formats, {r.dtype for r in costs.rows})
        chosen = [r for r in costs.rows if self._wants(r)]
        if self.json:
            for row in chosen:
                _say(json.dumps(asdict(row.device) | row.as_dict()))
            return 0
        if not chosen:
            _say(f"none of {len(costs.rows)} rows {'has an energy' if self.energy else 'is asked for'}")
        _say_summary(chosen)
        if self.rows or len(chosen) <= MOST_ROWS:
            for row in chosen:
                _say(_line(row))
        else:
            _say(f"{len(chosen)} rows: --rows prints them")
        for failure in costs.failures:
            _say(f"{failure.case}: failed, {' '.join(failure.message.split())}")
        return 0

    def _list_shipped(self) -> int:
        if self.ops or self.dtypes or self.energy or self.rows:
            raise ConfigError("no database was named: give a .costs.json file, or the name of a shipped one, as h200")
        for path in shipped_databases().values():
            costs, name = CostDatabase.load(path), path.name.removesuffix(SUFFIX)
            gpus = sorted({row.device.gpu for row in costs.rows})
            if self.json:
                _say(json.dumps({"name": name, "path": str(path), "gpus": gpus, "rows": len(costs)}))
            else:
                _say(f"{name}: {len(costs)} rows of {', '.join(gpus)}, {path}")
        return 0

    @property
    def _formats(self) -> tuple[str, ...]:
        return tuple(format_name(name) for name in listed(self.dtypes))

    def _wants(self, row: CostRow) -> bool:
        ops, dtypes = listed(self.ops), self._formats
        by_name = (not ops or row.op in ops) and (not dtypes or row.dtype in dtypes)
        return by_name and (not self.energy or row.energy_mj is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsMerge:
    """Join cost databases, of several occasions or devices; two that disagree about one measurement are refused.

    Attributes:
        databases: `.costs.json` files.
        out: The joined file.
        prefer: Whose figures stay where two disagree: "first", "last", or "neither" to refuse.
    """

    databases: Files
    out: Path
    prefer: Literal["neither", "first", "last"] = "neither"

    def execute(self) -> int:
        """Join and write."""
        if not self.databases:
            raise ConfigError("no database was named: give two .costs.json files or more")
        merged = CostDatabase.merged((CostDatabase.load(p) for p in self.databases), prefer=self.prefer)
        merged.save(self.out)
        _say(f"{self.out}: {len(merged)} rows")
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsPredict:
    """Carry measured costs over to a GPU that is not at hand, by published limits; the rows are marked predicted.

    Attributes:
        gpu: "a100", "h100", "h200" or "b200".
        out: The predicted database.
        database: `.costs.json` measured on an H200; the shipped one if not given.
    """

    gpu: str
    out: Path
    database: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[FILE]")] = None

    def execute(self) -> int:
        """Predict and write."""
        rows = self._measured()
        elsewhere = sorted({r.device.gpu for r in rows if not _H200.search(r.device.gpu)})
        if elsewhere:
            raise ConfigError(f"{self.database} holds rows of {', '.join(elsewhere)}: give one measured on an H200")
        carried = carry_over(rows, self.gpu)
        carried.save(self.out)
        _say(f"{self.out}: {len(carried)} rows predicted for {carried.rows[0].device.gpu}")
        return 0

    def _measured(self) -> list[CostRow]:
        if self.database is not None:
            refuse_to_overwrite(self.out, [self.database])
            return CostDatabase.load(self.database).rows
        return CostDatabase.load(shipped_databases()[SHIPPED]).rows


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsImport:
    """Take a table that a simulator wrote (LLMCompass, AccelWattch) as predicted costs.

    Attributes:
        table: CSV or parquet; its columns are named as `thermoe fit` takes them.
        gpu: Which GPU was simulated.
        simulator: By what.
        out: The predicted database.
    """

    table: tyro.conf.Positional[Path]
    gpu: str
    simulator: str
    out: Path

    def execute(self) -> int:
        """Read, check and write."""
        refuse_to_overwrite(self.out, [self.table])
        database = read_simulator_table(self.table, gpu=self.gpu, simulator=self.simulator)
        database.save(self.out)
        _say(f"{self.out}: {len(database)} rows predicted by {self.simulator} for {self.gpu}")
        return 0


def listed(words: Sequence[str]) -> tuple[str, ...]:
    """Names out of words that each hold one or several with commas between them."""
    return tuple(name.strip() for word in words for name in word.split(",") if name.strip())


def _say_summary(rows: Sequence[CostRow]) -> None:
    for device in dict.fromkeys(r.device for r in rows):
        mine = [r for r in rows if r.device == device]
        software = ", ".join(
            f"{name} {value}"
            for name, value in (
                ("driver", device.driver),
                ("torch", device.torch),
                ("triton", device.triton),
                ("kernel revision", device.kernel_revision),
            )
            if value
        )
        occasions = sorted({r.occasion for r in mine} - {""})
        when = f", measured {occasions[0]}" if occasions else ""
        when += f" and on {len(occasions) - 1} more occasions" if len(occasions) > 1 else ""
        _say(f"{device.gpu} ({software}): {len(mine)} rows, {_count_energy(mine)} with energy{when}")
    groups: dict[tuple[str, str, str], list[CostRow]] = {}
    for row in rows:
        groups.setdefault((row.op, row.impl, str(row.kind)), []).append(row)
    for (op, impl, kind), mine in groups.items():
        latencies = sorted(r.latency_us for r in mine)
        shapes = len({(r.hidden_size, r.inter_size, r.num_experts, r.top_k) for r in mine})
        formats = " ".join(dict.fromkeys(r.dtype for r in mine))
        _say(
            f"  {op}/{impl} ({kind}): {len(mine)} rows, {_count_energy(mine)} with energy, {shapes} shapes, "
            f"{latencies[0]:.1f} to {latencies[-1]:.1f} us; {formats}"
        )


def _line(row: CostRow) -> str:
    energy = "-" if row.energy_mj is None else f"{row.energy_mj:.2f} mJ at {row.power_w or 0:.0f} W"
    throttled = " throttled" if row.throttled else ""
    return f"{describe(row)}: {row.latency_us:.1f} us, {energy} ({'smoke' if row.is_smoke else row.kind}){throttled}"


def _count_energy(rows: Sequence[CostRow]) -> int:
    return sum(r.energy_mj is not None for r in rows)


def _refuse_unknown(what: str, names: Sequence[str], known: set[str]) -> None:
    unknown = sorted(set(names) - known)
    if unknown:
        raise ConfigError(f"no row of {what} {', '.join(unknown)}: choose from {', '.join(sorted(known))}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
