"""`thermoe fit` and `thermoe costs eval`; `thermoe.cost.database_command` has the commands on databases."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from thermoe.cost.arguments import Files
from thermoe.cost.database import CostDatabase
from thermoe.cost.evaluate import evaluate, is_of_fit
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.known_limits import fitting_limits
from thermoe.cost.safe_file import refuse_to_overwrite
from thermoe.cost.sources import left_out, observations_of
from thermoe.cost.told import eval_notes, eval_table, fit_notes, fit_table, flattery
from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind

if TYPE_CHECKING:
    import pandas as pd

    from thermoe.cost.sources import Sources


_TABLES = (".parquet", ".csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Fit a cost model to cost databases of one GPU and to plain tables of other operations.

    Attributes:
        tables: `.costs.json` files, parquet or CSV tables of MoE layers or of matrix products.
        out: Where the model goes, as JSON.
        predicted: Take rows that are predictions (`thermoe costs predict`) for measurements; the model says so.
    """

    tables: Files
    out: Path
    predicted: bool = False

    def execute(self) -> int:
        """Fit and write the model."""
        refuse_to_overwrite(self.out, self.tables)
        model = _fitted(read_costs(self.tables), predicted=self.predicted)
        model.save(self.out)
        _say("\n".join([fit_table(model), "", *fit_notes(model)]))
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsEval:
    """Compare a fitted model with a table or a cost database; rows that were in the fit are counted, for they flatter.

    Attributes:
        model: Model written by `thermoe fit`.
        table: `.costs.json`, parquet or CSV, of shapes that the model was not fitted to.
        json: Print JSON.
    """

    model: tyro.conf.Positional[Path]
    table: tyro.conf.Positional[Path]
    json: bool = False

    def execute(self) -> int:
        """Print the errors."""
        model, costs = KernelCostModel.load(self.model), read_costs((self.table,))
        result = evaluate(model, costs)
        _, gpu = observations_of(costs)
        if not is_of_fit(model, gpu):
            sys.stderr.write(f"{self.model} was fitted on {model.fitted_on_ or 'nothing'}, {self.table} is of {gpu}\n")
        elif line := flattery(result, str(self.model)):
            sys.stderr.write(f"{line}\n")
        _say_left_out(costs)
        _say(json.dumps(result, indent=1) if self.json else "\n".join([eval_table(result), "", *eval_notes(result)]))
        return 0


def _fitted(costs: "Sources", *, predicted: bool) -> KernelCostModel:
    """A model with the limits of the databases' GPU; a plain table is taken to be of an H200."""
    sources = costs if isinstance(costs, Sequence) else [costs]
    rows = [row for source in sources if isinstance(source, CostDatabase) for row in source.rows]
    kinds = {row.kind for row in rows}
    if rows and Kind.MEASURED not in kinds and not predicted:
        raise DataError(f"all {len(rows)} rows are {', '.join(sorted(kinds))}: --predicted fits a model to predictions")
    if predicted:
        if kinds != {Kind.PREDICTED}:
            raise ConfigError(f"--predicted needs predictions alone, got {', '.join(sorted(kinds)) or 'no database'}")
        sources = [CostDatabase([replace(row, kind=Kind.MEASURED) for row in rows])]
    gpus = {row.device.gpu for row in rows}
    model = KernelCostModel(fitting_limits(gpus.pop(), rows)) if len(gpus) == 1 else KernelCostModel()
    model.fit(sources)
    _say_left_out(sources)
    if predicted:
        model.fitted_on_ = f"predictions for {model.fitted_on_}"
    if rows and all(row.energy_mj is None for row in rows):
        sys.stderr.write(
            f"no row has an energy: the model's energies are guesses, at {model.limits.power_limit_w:.0f} W\n"
        )
    return model


def read_costs(paths: tuple[Path, ...]) -> "Sources":
    """Cost databases, joined, and plain tables."""
    if not paths:
        raise ConfigError("no table was named: give a .costs.json, .parquet or .csv file")
    tables: list[CostDatabase | pd.DataFrame] = [_read_table(p) for p in paths if p.suffix in _TABLES]
    databases = [CostDatabase.load(p) for p in paths if p.suffix not in _TABLES]
    return [*tables, *([CostDatabase.merged(databases)] if databases else [])]


def _read_table(path: Path) -> "pd.DataFrame":
    import pandas as pd  # only here: databases need no pandas

    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be read as a table ({' '.join(str(err).split())[:200]})") from err


def _say_left_out(costs: "Sources") -> None:
    reasons = left_out(costs)
    if reasons:
        sys.stderr.write(f"left out: {'; '.join(reasons)}\n")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
