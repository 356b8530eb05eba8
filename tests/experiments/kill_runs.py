"""Kill runs with SIGKILL at random moments; each must leave a readable folder that a resumed run completes.

    python tests/experiments/kill_runs.py --runs 100 --out kills.json

Children are forked, so that no time is spent on imports; each is killed for real. What a child says
over a pipe after a batch has been appended is what must be found on disk.
"""

import argparse
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from rich.console import Console

from thermoe.analysis.load import RunFolder
from thermoe.analysis.summary import summarise
from thermoe.experiments.config import RunConfig
from thermoe.experiments.run import resume_experiment, run_experiment
from thermoe.experiments.store import BatchKey, RunStore

CONFIG = RunConfig(
    d_model=16,
    inter_size=16,
    num_layers=2,
    num_experts=8,
    samples_per_workload=8,
    workloads=("standard", "small_batch"),
    strategies=("baseline", "opportunistic", "top_p"),
    name="killed",
)
NUM_BATCHES = 8 * 2 * 3
LATEST = 1.3  # kills fall from the first finished batch to well into joining and summarising
CLOCKS = ["wall_s", "started_wall_s", "routing_overhead_s", "adaptation_overhead_s"]


def started(folder: Path) -> None:
    """A new run."""
    run_experiment(CONFIG, folder, Console(quiet=True))


def resumed(folder: Path) -> None:
    """A run gone on with."""
    resume_experiment(folder, Console(quiet=True))


def forked(work: Callable[[], object], said: int) -> int:
    """Process id of a child that does the work and reports every finished batch over the descriptor."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        append = RunStore.append

        def told(store: RunStore, key: BatchKey, tables: object) -> None:
            append(store, key, tables)
            os.write(said, (json.dumps(key) + "\n").encode())

        RunStore.append = told
        work()
        code = 0
    finally:
        os._exit(code)


def wait_for(child: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def seconds_of_batches(folder: Path) -> float:
    """Time from the first to the last finished batch of a run that nobody stops [s]."""
    heard, said = os.pipe()
    child = forked(lambda: started(folder), said)
    os.close(said)
    with os.fdopen(heard) as pipe:
        times_s = [time.perf_counter() for _ in pipe]
    assert wait_for(child) == 0
    return times_s[-1] - times_s[0]


def run_and_kill(work: Callable[[], object], delay_s: float) -> tuple[list[BatchKey], bool]:
    """Kill a child so long after its first finished batch; batches it had announced, and whether the kill struck."""
    heard, said = os.pipe()
    child = forked(work, said)
    os.close(said)
    select.select([heard], [], [], 120)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    killed = wait_for(child) == -signal.SIGKILL
    with os.fdopen(heard) as pipe:
        complete = [line for line in pipe.read().splitlines(keepends=True) if line.endswith("\n")]
    return [BatchKey(*json.loads(line)) for line in complete], killed


def rows_of(path: Path) -> dict[str, pd.DataFrame]:
    """All tables, and a summary of them, as a report would read them."""
    folder = RunFolder(path)
    summarise(folder.tables, folder.config, folder.env)
    return folder.tables


def keys_of(tables: dict[str, pd.DataFrame]) -> list[BatchKey]:
    """Keys of the finished batches, as they stand in the table."""
    columns = [tables["batches"][name].tolist() for name in BatchKey._fields]
    return [BatchKey(w, int(s), a, int(b)) for w, s, a, b in zip(*columns, strict=True)]


def kill_once(folder: Path, delays_s: list[float], expected: dict[str, pd.DataFrame]) -> dict[str, object]:
    """Start a run, kill it and its resumptions after the given delays, resume it to the end, and check."""
    finished: list[int] = []
    struck = 0
    for number, delay_s in enumerate(delays_s):
        work = resumed if number else started
        announced, killed = run_and_kill(lambda work=work: work(folder), delay_s)
        struck += killed
        before = rows_of(folder)
        found = keys_of(before)
        assert len(found) == len(set(found)), "a batch is there twice"
        assert set(announced) <= set(found), "a finished batch was lost"
        finished.append(len(found))
    heard, said = os.pipe()
    assert wait_for(forked(lambda: resumed(folder), said)) == 0
    os.close(said)
    with os.fdopen(heard) as pipe:
        again = [BatchKey(*json.loads(line)) for line in pipe.read().splitlines()]
    assert not set(again) & set(found), "a finished batch was run again"
    after = rows_of(folder)
    assert len(after["batches"]) == NUM_BATCHES
    kept = after["batches"][[key in found for key in keys_of(after)]].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before["batches"], check_exact=True)
    for name, table in expected.items():
        pd.testing.assert_frame_equal(after[name].drop(columns=CLOCKS, errors="ignore"), table, check_exact=True)
    return {"delays_s": [round(d, 4) for d in delays_s], "finished_at_kill": finished, "kills_that_struck": struck}


def kill_many(num_runs: int, seed: int, where: Path) -> dict[str, object]:
    """Kill so many runs, every third one twice."""
    rng = random.Random(seed)
    started(where / "warm")
    batches_s = seconds_of_batches(where / "whole")
    expected = {n: t.drop(columns=CLOCKS, errors="ignore") for n, t in rows_of(where / "whole").items()}
    runs = []
    for number in range(num_runs):
        delays_s = [rng.uniform(0.0, LATEST * batches_s) for _ in range(2 if number % 3 == 2 else 1)]
        runs.append(kill_once(where / f"run{number}", delays_s, expected))
    struck = sum(int(r["kills_that_struck"]) for r in runs)
    midway = sum(any(0 < n < NUM_BATCHES for n in r["finished_at_kill"]) for r in runs)
    return {
        "schema": 1,
        "num_runs": num_runs,
        "kills": sum(len(r["delays_s"]) for r in runs),
        "kills_that_struck": struck,
        "runs_killed_between_first_and_last_batch": midway,
        "batches_per_run": NUM_BATCHES,
        "batches_lost": 0,
        "batches_run_twice": 0,
        "first_to_last_batch_s": round(batches_s, 3),
        "seed": seed,
        "runs": runs,
    }


def main() -> int:
    """Kill, and write what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = kill_many(options.runs, options.seed, Path(folder))
    if options.out is not None:
        runs = ",\n  ".join(json.dumps(run) for run in result.pop("runs"))
        head = json.dumps(result, indent=1).removesuffix("\n}")
        options.out.write_text(f'{head},\n "runs": [\n  {runs}\n ]\n}}\n')
    print({k: v for k, v in result.items() if k != "runs"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
