"""A case as a script of its own: it runs alone, under a profiler, or in a process that may die.

python case.py                   # prints a line
python case.py --row FILE        # measures it and writes the row as JSON
python case.py --repeats 50      # only runs it, in a range that profilers see: for nsys, ncu, torch.profiler
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.errors import CostError
from thermoe.profiling.case import Case
from thermoe.profiling.in_process import InProcess, Protocol

TIMEOUT_S = 300.0
_SCRIPT = '''\
"""{case}

Runs one operation of thermoe by itself; see thermoe.profiling.isolated for the options.
"""

from thermoe.profiling.isolated import run_script

CASE = {values}

if __name__ == "__main__":
    raise SystemExit(run_script(CASE))
'''


def write_script(case: Case, path: Path) -> Path:
    """Write the case as a script; it needs nothing but an installed thermoe."""
    lines = "".join(f"    {name!r}: {value!r},\n" for name, value in case.as_dict().items())
    path.write_text(_SCRIPT.format(case=case, values=f"{{\n{lines}}}"), encoding="utf-8")
    return path


def run_script(values: dict[str, Any], argv: list[str] | None = None) -> int:
    """What a script does; its exit code."""
    parser = argparse.ArgumentParser(description=str(Case.from_dict(values)))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, help="only run it so often")
    parser.add_argument("--row", type=Path, help="where the measured row goes, as JSON")
    parser.add_argument("--protocol", type=json.loads, help="fields of thermoe.profiling.in_process.Protocol")
    parser.add_argument("--occasion", default="")
    options = parser.parse_args(argv)
    case = Case.from_dict(values)
    if options.repeats is not None:
        repeat(case, options.device, options.repeats)
        return 0
    row = _profiler(options.device, options.protocol, options.occasion).measure(case)
    if options.row is not None:
        options.row.write_text(json.dumps({"device": asdict(row.device), "row": row.as_dict()}), encoding="utf-8")
    sys.stdout.write(f"{case}: {row.latency_us:.1f} us\n")
    return 0


def repeat(case: Case, device_name: str, repeats: int) -> None:
    """Run a case so often without a graph, each time in a range that is named `thermoe::OP`."""
    import torch

    from thermoe.profiling.formats import WeightCache
    from thermoe.profiling.machine import find_device
    from thermoe.profiling.operations import Setup, find_operation

    operation = find_operation(case)
    device = torch.device("cpu") if operation.on_host else find_device(device_name)
    steps = max(1, min(repeats, 8))
    with torch.no_grad():
        bench = operation.build(case, Setup(device=device, steps=steps, weights=WeightCache(device, 8e9)))
        bench.run(0)  # compiles what is compiled on first use
        for number in range(repeats):
            with _range(f"thermoe::{case.op}", device):
                bench.run(number % steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def measure_isolated(device_name: str, protocol: Protocol, occasion: str) -> Callable[[Case], CostRow]:
    """Measures each case in a process of its own.

    A process that fails or does not end in time is a `CostError` with its last words.
    """

    def measure(case: Case) -> CostRow:
        with tempfile.TemporaryDirectory() as folder:
            script, result = write_script(case, Path(folder, "case.py")), Path(folder, "row.json")
            command = [sys.executable, str(script), "--row", str(result), "--device", device_name]
            command += ["--protocol", json.dumps(asdict(protocol)), "--occasion", occasion]
            try:
                ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired as err:
                raise CostError(f"{case}: its process did not end in {TIMEOUT_S:.0f} s") from err
            if ended.returncode or not result.exists():
                raise CostError(f"{case}: its process ended with {ended.returncode}: {ended.stderr.strip()[-2000:]}")
            content = json.loads(result.read_text(encoding="utf-8"))
        return CostRow.from_dict(content["row"], DeviceKey.from_dict(content["device"], str(script)))

    return measure


def _profiler(device_name: str, protocol: dict[str, Any] | None, occasion: str) -> InProcess:
    from thermoe.profiling.in_process import CPU_PROTOCOL
    from thermoe.profiling.machine import device_key, find_device, open_sensors

    device = find_device(device_name)
    usual = Protocol() if device.type == "cuda" else CPU_PROTOCOL
    return InProcess(
        device=device,
        device_key=device_key(device),
        read_state=open_sensors(device),
        protocol=Protocol(**protocol) if protocol else usual,
        occasion=occasion,
    )


@contextmanager
def _range(name: str, device: Any) -> Iterator[None]:
    """A range for torch.profiler and, on a GPU, for nsys and ncu."""
    import torch

    with torch.profiler.record_function(name):
        if device.type != "cuda":
            yield
            return
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()
