"""`thermoe costs report`: one page on what cost databases hold and how well it is predicted."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from thermoe.analysis.costs.page import write_page
from thermoe.analysis.costs.view import make_view
from thermoe.cost.arguments import Files
from thermoe.cost.database_command import listed
from thermoe.cost.safe_file import refuse_to_overwrite
from thermoe.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsReport:
    """Write one HTML page of cost databases: cost against sizes, predictions against measurements, kernels and power.

    Attributes:
        databases: `.costs.json` files.
        out: The page to write, `.html`.
        ops: Only these operations, listed with commas or spaces.
        model: Model of `thermoe fit`, to set beside the rows.
        kernels: Tables of `thermoe parse`, to correlate types of kernels with power.
        held_out: Leave out shapes in so many folds and fit on the rest; 0 for not at all, 5 takes minutes.
        window_ms: Length of the windows over the kernels; chosen from the trace if not given [ms].
    """

    databases: Files
    out: Path
    ops: tuple[str, ...] = ()
    model: Path | None = None
    kernels: tuple[Path, ...] = ()
    held_out: int = 0
    window_ms: float | None = None

    def __post_init__(self) -> None:
        if self.out.suffix != ".html":
            raise ConfigError(f"{self.out}: name a file that ends in .html")
        if self.held_out < 0 or self.held_out == 1:
            raise ConfigError(f"held_out = {self.held_out}: needs 2 folds or more, or 0 for none")

    def execute(self) -> int:
        """Read, compute, write."""
        refuse_to_overwrite(self.out, [*self.databases, *self.kernels, *([self.model] if self.model else [])])
        view = make_view(
            self.databases,
            ops=listed(self.ops),
            model=self.model,
            kernels=self.kernels,
            folds=self.held_out,
            window_s=None if self.window_ms is None else self.window_ms * 1e-3,
            command=self._command(),
            report=_note,
        )
        print(f"{write_page(view, self.out, _note)}: written")
        return 0

    def _command(self) -> str:
        words = ["thermoe", "costs", "report", *(path.name for path in self.databases)]
        words += ["--ops", *self.ops] if self.ops else []
        words += ["--model", self.model.name] if self.model else []
        words += ["--kernels", *(path.name for path in self.kernels)] if self.kernels else []
        words += ["--held-out", str(self.held_out)] if self.held_out else []
        words += ["--window-ms", f"{self.window_ms:g}"] if self.window_ms is not None else []
        return shlex.join([*words, "--out", self.out.name])


def _note(line: str) -> None:
    sys.stderr.write(f"{line}\n")
