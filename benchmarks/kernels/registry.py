"""What can be measured: operations, and the implementations of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.kernels.cell import Cell
from thermoe.errors import ConfigError

Output = tuple[Tensor | None, ...]
Run = Callable[[int], Output]
OWN = "thermoe"


class UnavailableError(Exception):
    """An implementation cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One implementation of one operation.

    Attributes:
        op, impl: Names on the command line and in the rows.
        dtypes: Formats it takes.
        build: From a cell, a format and a number of layers to a function that runs one of these layers.
            Raises `UnavailableError` where it cannot run.
        plan_included: Whether the dispatch plan is made inside what is timed.
        policy: Routing only: "top_k", "union", or "union_counted" with the counters of the data plane.
    """

    op: str
    impl: str
    dtypes: tuple[str, ...]
    build: Callable[[Cell, str, int], Run]
    plan_included: bool = True
    policy: str | None = None

    @property
    def unites(self) -> bool:
        """Whether the batch chooses its experts together."""
        return self.policy is not None and self.policy.startswith("union")

    @property
    def label(self) -> str:
        """The entry in a few words."""
        plan = "" if self.plan_included or self.op not in ("expert_mlp", "routing") else " without plan"
        return f"{self.op} {self.impl}{plan}" + (f" {self.policy}" if self.policy else "")


def choose(entries: Sequence[Entry], ops: Sequence[str], impls: Sequence[str]) -> list[Entry]:
    """Entries of the named operations and implementations; no names means all.

    Raises:
        ConfigError: An unknown name, or names that leave nothing.
    """
    known_ops, known_impls = sorted({e.op for e in entries}), sorted({e.impl for e in entries})
    check_names("operation", ops, known_ops)
    check_names("implementation", impls, known_impls)
    chosen = [e for e in entries if (not ops or e.op in ops) and (not impls or e.impl in impls)]
    if not chosen:
        raise ConfigError(f"no implementation of {', '.join(ops)} is called {', '.join(impls)}: leave out --impls")
    return chosen


def check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse unknown names.

    Raises:
        ConfigError: Names that are not known, and those that are.
    """
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown {what} {', '.join(unknown)}: choose from {', '.join(known)}")
