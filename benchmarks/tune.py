"""`python -m benchmarks.tune --out FILE`: freeze launch configurations of the expert kernels for this GPU.

The first product's tile is varied, then the second's beside the best first. What is frozen is the least by the stated
objective: time, energy, or their product. Nothing is tuned at import or while a model serves.
"""

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import comma_list, find_device, token_counts
from benchmarks.card import open_sensors
from benchmarks.kernels.cell import SHAPES, Cell, WeightStore
from benchmarks.kernels.formats import FORMATS
from benchmarks.kernels.own import run_configured
from benchmarks.kernels.precompile import Precompiler, Task
from benchmarks.kernels.registry import check_names
from benchmarks.kernels.tuning import Effort, Measured, Objective, Tuned, tune
from benchmarks.windows import ReadState
from thermoe.errors import ConfigError, ThermoeError
from thermoe.kernels.expert_mlp.configs import SCHEMA, MlpConfig, Shape, config_space, shape_of, token_bucket

Entry = dict[str, Any]
KEY = ("gpu", "format", "d_model", "inter_size", "num_experts", "top_k", "tokens")


def main(argv: Sequence[str] | None = None) -> int:
    """Tune; 2 if the input is wrong or nothing can be tuned here."""
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except ThermoeError as err:
        print(f"benchmarks.tune: error: {err}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--shapes", default="qwen3-30b-a3b", help="comma list")
    parser.add_argument("--formats", default="bf16,fp8,int4,int2,int8,bank4", help="comma list")
    parser.add_argument("--tokens", default="1,16,64,4096", help="comma list; a choice holds up to a power of two")
    parser.add_argument("--objective", choices=[str(o) for o in Objective], default="time")
    parser.add_argument("--candidates", type=int, default=24, help="configurations tried for each product")
    parser.add_argument("--finalists", type=int, default=4, help="the fastest few, whose joules are measured")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of an energy window")
    parser.add_argument("--minutes", type=float, default=4.0, help="no further size is begun after this time")
    parser.add_argument("--jobs", type=int, default=None, help="processes that compile; 1 for none beside")
    parser.add_argument("--out", type=Path, required=True, help="frozen file; what it holds already is kept")
    return parser


def _run(options: argparse.Namespace) -> int:
    shapes, formats = comma_list(options.shapes), comma_list(options.formats)
    check_names("shape", shapes, list(SHAPES))
    check_names("format", formats, list(FORMATS))
    tokens, device = token_counts(options.tokens), find_device("cuda")
    sensors = open_sensors(device)
    entries = load_entries(options.out)
    stop_s = time.monotonic() + 60.0 * options.minutes
    with torch.inference_mode(), contextlib.closing(Precompiler(options.jobs, device)) as compiler:
        for name in shapes:
            store = WeightStore(SHAPES[name], device)
            for count, dtype in ((c, f) for c in tokens for f in formats):
                if time.monotonic() > stop_s:
                    print(f"not begun: {dtype} {name} T={count}: --minutes {options.minutes} are over")
                    continue
                cell = Cell(name, count, device, store)
                read = sensors.read if sensors else None
                found, shape = tune_size(cell, dtype, options, compiler, read, stop_s)
                entries = merge(entries, [frozen_entry(torch.cuda.get_device_name(device), shape, found)])
                write_entries(options.out, entries)
                _report(f"{dtype} {name} T={count}", found)
    return 0


def tune_size(
    cell: Cell, dtype: str, options: argparse.Namespace, compiler: Precompiler, read: ReadState | None, stop_s: float
) -> tuple[Tuned, Shape]:
    """Tune one format at one shape and token count."""
    major, minor = torch.cuda.get_device_capability(cell.device)
    shape = shape_of(cell.store.layers(dtype, 1)[0], cell.num_tokens, cell.shape.top_k)
    space = list(config_space(shape, 10 * major + minor))
    left_s = max(1.0, stop_s - time.monotonic())
    effort = Effort(finalists=options.finalists, seconds=options.seconds, limit_s=0.5 * left_s)
    objective = Objective(options.objective)

    def stage(configs: Sequence[MlpConfig], objective: Objective, read: ReadState | None) -> Tuned:
        settings = [config.to_dict() for config in configs]
        here = Task(shape_name=cell.shape_name, num_tokens=cell.num_tokens, dtype=dtype, device=str(cell.device))
        compiler.run([replace(here, settings=each) for each in settings])
        return tune(cell, dtype, settings, run_configured, objective=objective, effort=effort, read=read)

    first = stage(first_product(space, options.candidates), Objective.TIME, None)
    best = MlpConfig.from_dict(first.chosen.settings)
    return stage(second_product(space, best, options.candidates), objective, read), shape


def first_product(space: Sequence[MlpConfig], count: int) -> list[MlpConfig]:
    """The rule's own choice, the same without the built kernel, and other tiles of the first product beside it."""
    rule = replace(space[0], cuda=False)
    others = _unique(replace(config, fc2=rule.fc2, cuda=False) for config in space)
    return _unique([space[0], rule, *_some(others, count)])


def second_product(space: Sequence[MlpConfig], best: MlpConfig, count: int) -> list[MlpConfig]:
    """The best so far, other tiles of the second product beside it, and overlapping launches the other way."""
    if best.cuda:
        return _unique([best, replace(best, cuda=False)])
    others = _unique(replace(best, fc2=config.fc2) for config in space)
    turned = replace(best, dependent=not best.dependent)
    return _unique([best, turned, replace(space[0], cuda=False), *_some(others, count)])


def _unique(configs: Any) -> list[MlpConfig]:
    return list(dict.fromkeys(configs))


def _some(configs: Sequence[MlpConfig], count: int) -> list[MlpConfig]:
    """At most so many, drawn evenly; the same ones every time."""
    return list(configs) if len(configs) <= count else random.Random(0).sample(list(configs), count)


def frozen_entry(gpu: str, shape: Shape, found: Tuned) -> Entry:
    """A line of the frozen file: for whom, the choice, and by which objective and figures it was made."""
    size = asdict(shape) | {"gpu": gpu, "tokens": token_bucket(shape.num_tokens)}
    chosen = found.chosen
    figures = {"objective": str(found.objective), "latency_us": round(chosen.latency_us, 3)}
    if chosen.energy_mj is not None:
        figures["energy_mj"] = round(chosen.energy_mj, 4)
    return {name: size[name] for name in KEY} | {"config": chosen.settings} | figures


def merge(entries: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """New entries replace those of the same GPU, format, shape and tokens."""
    by_key = {tuple(entry[name] for name in KEY): entry for entry in (*entries, *new)}
    return [by_key[key] for key in sorted(by_key)]


def load_entries(path: Path) -> list[Entry]:
    """Entries of a frozen file; of the shipped one where there is no file yet.

    Raises:
        ConfigError: The file is no frozen file of this schema.
    """
    shipped = resources.files("thermoe.kernels.expert_mlp").joinpath("configs.json")
    text = path.read_text(encoding="utf-8") if path.is_file() else shipped.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        schema, entries = content["schema"], list[Entry](content["entries"])
    except (json.JSONDecodeError, KeyError, TypeError) as err:
        raise ConfigError(f"{path} holds no frozen configurations ({type(err).__name__}): give another --out") from err
    if schema != SCHEMA:
        raise ConfigError(f"{path} has schema {schema}, this version reads {SCHEMA}: give another --out")
    return entries


def write_entries(path: Path, entries: Sequence[Entry]) -> None:
    """Replace the frozen file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": SCHEMA, "entries": list(entries)}, indent=1) + "\n", encoding="utf-8")


def _report(name: str, found: Tuned) -> None:
    joules = "" if found.chosen.energy_mj is None else f", {found.chosen.energy_mj:.4g} mJ"
    counts = f"{len(found.measured)} measured, {found.rejected} out, {found.not_reached} not reached"
    print(f"{name}: {found.chosen.latency_us:.4g} us{joules} by {found.objective} ({counts})", flush=True)
    for measured in found.measured[:4]:
        print(f"  {_line(measured)}", flush=True)
    if (line := found.disagreement()) is not None:
        print(f"  energy and time disagree: {line}", flush=True)


def _line(measured: Measured) -> str:
    joules = "" if measured.energy_mj is None else f" {measured.energy_mj:.4g} mJ"
    return f"{measured.latency_us:.4g} us{joules} {measured.settings}"


if __name__ == "__main__":
    sys.exit(main())
