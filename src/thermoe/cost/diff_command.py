"""`thermoe costs diff`: what changed between two cost databases."""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from thermoe.cost.database import CostDatabase
from thermoe.cost.rows import CostRow, without_smoke
from thermoe.errors import ConfigError, DataError

_MOST_NAMED = 4
_PARTS: dict[str, Callable[[CostRow], str]] = {
    "operation": lambda r: r.op,
    "implementation": lambda r: r.impl,
    "format": lambda r: r.dtype,
    "shape": lambda r: f"D{r.hidden_size} I{r.inter_size} E{r.num_experts} k{r.top_k}",
    "rows": lambda r: str(r.routed_rows),
    "experts touched": lambda r: str(r.active_experts),
    "load": lambda r: r.load,
    "GPU": lambda r: r.device.gpu,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsDiff:
    """Compare two cost databases case by case; ends with 1 if a median latency rose by more than the tolerance.

    Two that have no case in common are refused.

    Attributes:
        old, new: `.costs.json` files.
        tolerance_pct: Rise that counts as noise [%].
        changed: Print only cases whose latency or energy changed by more than the tolerance.
        json: Print JSON.
    """

    old: tyro.conf.Positional[Path]
    new: tyro.conf.Positional[Path]
    tolerance_pct: float = 5.0
    changed: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        if not self.tolerance_pct >= 0.0:
            raise ConfigError(f"tolerance_pct = {self.tolerance_pct}: needs 0 or more")

    def execute(self) -> int:
        """Print the changes of the cases both hold, the largest rise first, and their median by operation.

        Raises:
            DataError: They have no case in common.
        """
        old, new = (CostDatabase.load(path) for path in (self.old, self.new))
        for costs in (old, new):
            without_smoke(costs.rows)
        changes = sorted(old.diff(new), key=lambda c: -c["latency_change_pct"])
        if not changes:
            raise DataError(why_nothing_in_common(str(self.old), old.rows, str(self.new), new.rows))
        shown = [c for c in changes if not self.changed or self._is_changed(c)]
        if self.json:
            _say(json.dumps(shown, indent=1))
        else:
            for change in shown:
                _say(
                    f"{change['case']}: latency {change['latency_change_pct']:+.1f} %{_energy_change(change)}"
                    f"{_other_kinds(change)}"
                )
            _say_medians(changes)
        return int(any(c["latency_change_pct"] > self.tolerance_pct for c in changes))

    def _is_changed(self, change: dict[str, Any]) -> bool:
        parts = (change["latency_change_pct"], change["energy_change_pct"])
        return any(part is not None and abs(part) > self.tolerance_pct for part in parts)


def why_nothing_in_common(old_name: str, old: Iterable[CostRow], new_name: str, new: Iterable[CostRow]) -> str:
    """One line on what two databases without a common case hold: what is in both, and what only in one."""
    ours, theirs = ([row for row in rows if not row.is_smoke] for rows in (old, new))
    for name, rows in ((old_name, ours), (new_name, theirs)):
        if not rows:
            return f"{name} holds no row: there is nothing to compare"
    both, apart = [], []
    for part, of in _PARTS.items():
        mine, yours = ({of(row) for row in rows} for rows in (ours, theirs))
        if mine & yours:
            both.append(f"{part} {_named(mine & yours)}")
        if mine != yours:
            sides = ((mine - yours, "the first"), (yours - mine, "the second"))
            apart.append(f"{part} {', '.join(f'{_named(names)} ({where} alone)' for names, where in sides if names)}")
    common = f"in both: {'; '.join(both)}" if both else "nothing of them is in both"
    differing = f"not in both: {'; '.join(apart)}" if apart else "but no case combines these in the same way"
    return f"{old_name} and {new_name} have no case in common; {common}; {differing}"


def _named(names: Iterable[str]) -> str:
    """Some of the names, and how many more there are."""
    ordered = sorted(names, key=lambda name: (len(name), name))
    more = f" and {len(ordered) - _MOST_NAMED} more" if len(ordered) > _MOST_NAMED else ""
    return ", ".join(ordered[:_MOST_NAMED]) + more


def _say_medians(changes: Sequence[dict[str, Any]]) -> None:
    by_op: dict[str, list[float]] = {}
    for change in changes:
        by_op.setdefault(change["op"], []).append(change["latency_change_pct"])
    for op, parts in by_op.items():
        _say(f"{op}: {len(parts)} cases, median latency {statistics.median(parts):+.1f} %")


def _energy_change(change: dict[str, Any]) -> str:
    energy = change["energy_change_pct"]
    return "" if energy is None else f", energy {energy:+.1f} %"


def _other_kinds(change: dict[str, Any]) -> str:
    """Of what kinds the figures are, where not both were measured."""
    kinds = list(dict.fromkeys(change["kinds"]))
    return "" if kinds == ["measured"] else f" ({' to '.join(kinds)})"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
