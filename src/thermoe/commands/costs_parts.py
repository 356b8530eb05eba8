"""`thermoe costs parts`: what an expert MLP call costs beside the sum of its parts, and why."""

import json
from dataclasses import dataclass
from pathlib import Path

from thermoe.cost.arguments import Files
from thermoe.cost.database import CostDatabase, describe
from thermoe.cost.fusing import Explanation, explain_calls, why_none
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.parts import find_calls
from thermoe.cost.rows import without_smoke
from thermoe.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsParts:
    """Compare measured expert MLP calls with the sum of their parts, and say what fusing them saves.

    Attributes:
        databases: `.costs.json` files that hold both, such as `thermoe profile` measures them.
        model: Model of `thermoe fit`, to predict parts that were not measured.
        json: Print JSON, one object for each call.
    """

    databases: Files
    model: Path | None = None
    json: bool = False

    def execute(self) -> int:
        """Pair, explain, print.

        Raises:
            ConfigError: No database was named.
            DataError: A file cannot be read, or no call has all its parts.
        """
        if not self.databases:
            beside = "" if self.model is None else f" beside --model {self.model}"
            raise ConfigError(f"no database was named{beside}: give the .costs.json files that hold the calls")
        rows = CostDatabase.merged(CostDatabase.load(path) for path in self.databases).rows
        without_smoke(rows)
        model = None if self.model is None else KernelCostModel.load(self.model)
        calls = find_calls(rows, model)
        explained = explain_calls(calls, rows)
        if not explained:
            raise DataError(why_none(calls) if model is None else why_none(calls, str(self.model), model.operations_))
        for one in explained:
            print(json.dumps(one.as_dict()) if self.json else in_words(one))
        if not self.json:
            print(f"{len(explained)} of {len(calls)} expert MLP calls have all their parts")
        return 0


def in_words(one: Explanation) -> str:
    """A few lines on one call."""
    call, found = one.call, one.as_dict()
    parts = ", ".join(f"{p.op} {p.latency_s * 1e6:.1f}{'' if p.rows else ' predicted'}" for p in call.parts)
    return "\n".join(
        [
            f"{describe(call.row)} on {call.row.device.gpu} ({one.kind})",
            f"  parts [us]: {parts}",
            f"  latency [us]: {_told(found['latency_us'])}",
            f"  energy [mJ]: {_told(found['energy_mj'])}",
        ]
    )


_SUMS = ("fused", "parts", "difference", "predicted_from_parts", "error_pct")


def _told(split: dict[str, float] | None) -> str:
    if split is None:
        return "not known of all parts"
    terms = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in split.items() if name not in _SUMS)
    return (
        f"parts {split['parts']:.2f}, call {split['fused']:.2f}, difference {split['difference']:.2f}: {terms}; "
        f"the parts predict {split['predicted_from_parts']:.2f} ({split['error_pct']:+.1f} %)"
    )
