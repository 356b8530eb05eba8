"""Profiler traces of the first batch of an arm, viewable in Perfetto."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from thermoe.experiments.arms import Arm


@contextmanager
def maybe_traced(wanted: bool, folder: Path, arm: Arm) -> Iterator[None]:
    """Write `traces/WORKLOAD-STRATEGY-SEED.json` of what runs inside, if wanted."""
    if not wanted:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    traces = folder / "traces"
    traces.mkdir(exist_ok=True)
    with torch.profiler.profile(activities=activities) as profile:
        yield
    name = f"{arm.workload_name}-{arm.strategy}-{arm.seed}".replace(":", "-")
    profile.export_chrome_trace(str(traces / f"{name}.json"))
