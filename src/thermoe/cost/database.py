"""The cost database: one versioned JSON file of `CostRow`s, keyed by device and software."""

import json
import reprlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.cost.safe_file import write_atomically as write_atomically
from thermoe.cost.shipped import located
from thermoe.errors import DataError
from thermoe.format_names import format_name
from thermoe.types import Kind

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "thermoe.costs"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that could not be measured, in the profiler's words."""

    case: str
    message: str


@dataclass(slots=True)
class CostDatabase:
    """Rows of cost, at most one per `CostRow.key`, in the order they were added."""

    rows: list[CostRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: CostRow) -> None:
        """Add a row in place of any older row of the same key; a failure of its case is forgotten."""
        self.rows = [r for r in self.rows if r.key != row.key]
        self.rows.append(row)
        self.forget_failures([describe(row)])

    def forget_failures(self, cases: Iterable[str] | None = None) -> None:
        """Drop the failures of these cases (as `describe` writes them), all of them without an argument."""
        forgotten = {f.case for f in self.failures} if cases is None else set(cases)
        self.failures = [f for f in self.failures if f.case not in forgotten]

    def select(self, **wanted: Any) -> "CostDatabase":
        """Rows whose named fields have the given values; a field may also be one of the device's.

        Raises:
            DataError: A name that no row has.
        """
        unknown = sorted(set(wanted) - _FIELDS)
        if unknown:
            raise DataError(f"cost rows have no {', '.join(unknown)}: choose from {', '.join(sorted(_FIELDS))}")
        if isinstance(wanted.get("dtype"), str):
            wanted["dtype"] = format_name(wanted["dtype"])
        return CostDatabase([r for r in self.rows if all(_field(r, k) == v for k, v in wanted.items())])

    def merge(self, other: "CostDatabase", *, prefer: str = "neither") -> "CostDatabase":
        """Both databases' rows; rows of one case from different occasions stand side by side.

        Args:
            other: The database whose rows come behind.
            prefer: Whose figures stay where both hold a key with different ones: "first", "last" or "neither".

        Raises:
            DataError: They differ about a key, and neither is to be preferred.
        """
        merged = {row.key: row for row in self.rows}
        for row in other.rows:
            twin = merged.setdefault(row.key, row)
            if twin != row and prefer == "neither":
                raise DataError(
                    f"both databases hold {describe(row)} of one occasion with different figures "
                    f"({twin.latency_us:g} and {row.latency_us:g} us): say which one to prefer"
                )
            if prefer == "last":
                merged[row.key] = row
        measured = {describe(row) for row in merged.values()}
        failures = dict.fromkeys([*self.failures, *other.failures])
        return CostDatabase(list(merged.values()), [f for f in failures if f.case not in measured])

    def diff(self, other: "CostDatabase") -> list[dict[str, Any]]:
        """Change from this database to `other` for the cases both hold [%].

        GPUs that both hold are compared each with itself; one GPU may be compared with one other. A case with several
        rows, of several releases or occasions, counts with its medians, of one kind: each kind that both hold, else
        the surest of each.

        Raises:
            DataError: No GPU is in both, and more than one in either.
        """
        changes = []
        for ours, theirs in _paired_gpus(self.rows, other.rows):
            old, new = _by_case(ours), _by_case(theirs)
            for case in old:
                changes += [_change(*pair) for pair in _paired_kinds(old[case], new.get(case, []))]
        return changes

    def to_frame(self) -> "pd.DataFrame":
        """One line per row, the device's fields as columns of their own."""
        import pandas as pd  # only here: reading a database needs no pandas

        lines = [asdict(r.device) | {k: v for k, v in asdict(r).items() if k != "device"} for r in self.rows]
        return pd.DataFrame(lines).astype({"kind": str}) if lines else pd.DataFrame(columns=sorted(_FIELDS))

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all, one row per line."""
        devices = list(dict.fromkeys(r.device for r in self.rows))
        numbers = {device: i for i, device in enumerate(devices)}
        row_lines = ",\n  ".join(json.dumps({"device": numbers[r.device]} | r.as_dict()) for r in self.rows)
        text = (
            f'{{"format": "{FORMAT}", "schema": {SCHEMA_VERSION},\n'
            f' "devices": {json.dumps([asdict(d) for d in devices])},\n'
            f' "failures": {json.dumps([asdict(f) for f in self.failures])},\n'
            f' "rows": [\n  {row_lines}\n ]}}\n'
        )
        write_atomically(Path(path), text)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a file; the bare name of a shipped database, such as `h200`, stands for it.

        Raises:
            DataError: The file is missing, truncated, of another format, or holds a row that
                cannot be right; the message is one line.
        """
        path = located(Path(path))
        if not path.exists():
            raise DataError(
                f"{path}: cannot be read (No such file or directory); thermoe costs show lists the shipped ones"
            )
        content = read_json_object(path, FORMAT, SCHEMA_VERSION)
        devices = [DeviceKey.from_dict(d, str(path)) for d in _list(content, "devices", path)]
        rows = [_read_row(r, i, devices, path) for i, r in enumerate(_list(content, "rows", path))]
        if len({r.key for r in rows}) != len(rows):
            raise DataError(f"{path}: holds the same case twice; keep one of each")
        return cls(rows, [_read_failure(f, path) for f in _list(content, "failures", path)])

    @classmethod
    def merged(cls, databases: Iterable["CostDatabase"], *, prefer: str = "neither") -> "CostDatabase":
        """All databases as one; see `merge`."""
        result: CostDatabase = cls()
        for database in databases:
            result = result.merge(database, prefer=prefer)
        return result


def describe(row: CostRow) -> str:
    """A row's case in a few words, for messages and tables."""
    sizes = f"D{row.hidden_size} I{row.inter_size} E{row.num_experts} k{row.top_k}"
    more = f", {row.load} load" if row.load != "random" else ""
    more += f", context {row.context}" if row.context > 1 else ""
    return f"{row.op}/{row.impl} {row.dtype} {sizes}, {row.routed_rows} rows on {row.active_experts} experts{more}"


def read_json_object(path: Path, expected_format: str, schema: int) -> dict[str, Any]:
    """Read a JSON object that names its format and schema; anything else is a one-line `DataError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror})") from err
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: is not whole JSON ({' '.join(str(err).split())}); measure or fetch it again") from err
    if not isinstance(content, dict) or content.get("format") != expected_format:
        raise DataError(f'{path}: is no {expected_format} file (it lacks "format": "{expected_format}")')
    if content.get("schema") != schema:
        raise DataError(f"{path}: has schema {reprlib.repr(content.get('schema'))}, this version reads {schema}")
    return content


_FIELDS = (set(CostRow.__dataclass_fields__) - {"device"}) | set(DeviceKey.__dataclass_fields__)


def _field(row: CostRow, name: str) -> Any:
    return getattr(row.device, name) if name in DeviceKey.__dataclass_fields__ else getattr(row, name)


def _by_case(rows: Iterable[CostRow]) -> dict[Any, list[CostRow]]:
    cases: dict[Any, list[CostRow]] = {}
    for row in rows:
        if not row.is_smoke:
            cases.setdefault(row.case_key, []).append(row)
    return cases


def _paired_gpus(old: Sequence[CostRow], new: Sequence[CostRow]) -> list[tuple[list[CostRow], list[CostRow]]]:
    ours, theirs = (list(dict.fromkeys(r.device.gpu for r in rows)) for rows in (old, new))
    pairs = [(gpu, gpu) for gpu in ours if gpu in theirs]
    if not pairs and max(len(ours), len(theirs)) > 1:
        raise DataError(
            f"no GPU is in both: {', '.join(ours)}; {', '.join(theirs)}: select one of each to compare them"
        )
    pairs = pairs or list(zip(ours, theirs, strict=False))
    return [([r for r in old if r.device.gpu == a], [r for r in new if r.device.gpu == b]) for a, b in pairs]


def _paired_kinds(old: Sequence[CostRow], new: Sequence[CostRow]) -> list[tuple[list[CostRow], list[CostRow]]]:
    """Rows of one case that may be compared: no median is over two kinds."""
    ours, theirs = ([kind for kind in Kind if any(r.kind is kind for r in rows)] for rows in (old, new))
    pairs = [(kind, kind) for kind in ours if kind in theirs] or list(zip(ours[:1], theirs[:1], strict=False))
    return [([r for r in old if r.kind is a], [r for r in new if r.kind is b]) for a, b in pairs]


def _change(old: Sequence[CostRow], new: Sequence[CostRow]) -> dict[str, Any]:
    """One entry of `diff`, of the rows of one case in both databases."""
    old_us, new_us = (statistics.median(r.latency_us for r in rows) for rows in (old, new))
    old_mj, new_mj = (_median([r.energy_mj for r in rows]) for rows in (old, new))
    return {
        "case": describe(old[0]),
        "op": old[0].op,
        "gpus": [old[0].device.gpu, new[0].device.gpu],
        "kinds": [str(old[0].kind), str(new[0].kind)],
        "latency_us": old_us,
        "latency_change_pct": _change_pct(old_us, new_us),
        "energy_mj": old_mj,
        "energy_change_pct": _change_pct(old_mj, new_mj),
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def _change_pct(old: float | None, new: float | None) -> float | None:
    return None if old is None or new is None else 100.0 * (new / old - 1.0)


def _list(content: dict[str, Any], name: str, path: Path) -> Sequence[Any]:
    values = content.get(name)
    if not isinstance(values, list):
        raise DataError(f"{path}: {name} is {type(values).__name__}, needed a list")
    return values


def _read_row(values: Any, index: int, devices: Sequence[DeviceKey], path: Path) -> CostRow:
    number = values.get("device") if isinstance(values, dict) else None
    if not isinstance(number, int) or not 0 <= number < len(devices):
        raise DataError(f"{path}: row {index} names device {reprlib.repr(number)}, the file has {len(devices)}")
    try:
        return CostRow.from_dict(values, devices[number])
    except DataError as err:
        raise DataError(f"{path}: row {index}: {err}") from err


def _read_failure(values: Any, path: Path) -> Failure:
    if not isinstance(values, dict) or not all(isinstance(values.get(k), str) for k in ("case", "message")):
        raise DataError(f"{path}: a failure needs a case and a message")
    return Failure(values["case"], values["message"])
