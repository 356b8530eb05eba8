"""Compiling kernels ahead in several processes, so that a GPU does not wait for a compiler on one core.

Each process runs the launches it is given once, on weights that nobody filled; Triton keeps what it compiled in its
cache on disk, where the process that measures finds it.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.cell import SHAPES, Cell, WeightStore
from benchmarks.kernels.formats import make_experts
from benchmarks.kernels.own import OWN_KERNELS, run_configured
from benchmarks.kernels.registry import Run
from thermoe.kernels.expert_mlp.weights import DenseMatrices, ExpertWeights, Fp8Matrices, Matrices
from thermoe.types import MoEShape

MOST_JOBS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One launch: the entry of `OWN_KERNELS` at a place, or the expert MLP with a configuration."""

    shape_name: str
    num_tokens: int
    dtype: str
    device: str
    entry: int | None = None
    settings: dict[str, Any] | None = None


class HollowStore(WeightStore):
    """Weights of the right sizes with whatever was in memory."""

    def layers(self, name: str, count: int) -> list[ExpertWeights]:
        """The same hollow layer `count` times."""
        if name not in self._layers:
            self._layers = {name: [hollow_experts(name, self._shape, self._device)]}  # one format at a time
        return self._layers[name] * count


class Precompiler:
    """Processes that compile; none of them for a CPU or for a single job."""

    def __init__(self, jobs: int | None, device: torch.device) -> None:
        if jobs is None:
            jobs = min(MOST_JOBS, (os.cpu_count() or 1) * 3 // 4)
        needed = device.type == "cuda" and jobs > 1
        self._pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if needed else None

    def run(self, tasks: Sequence[Task]) -> int:
        """Compile for all tasks; how many did not run, which the measurement will see and say for itself."""
        if self._pool is None or not tasks:
            return 0
        failed = run_task(tasks[0])  # what is built once for all must not be built by several at a time
        try:
            return failed + sum(self._pool.map(run_task, tasks[1:]))
        except BrokenProcessPool:
            print("a process that compiled ahead died: what is missing is compiled when it is measured")
            self._pool = None
            return len(tasks)

    def close(self) -> None:
        """End the processes and let go of what was made here."""
        _store.cache_clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def own_tasks(
    entries: Sequence[object],
    shapes: Sequence[str],
    formats: Sequence[str],
    tokens: Sequence[int],
    device: torch.device,
) -> list[Task]:
    """A task for each of Thermoe's own rows that a plan asks for."""
    return [
        Task(shape_name=shape, num_tokens=count, dtype=dtype, device=str(device), entry=place)
        for shape in shapes
        for place, entry in enumerate(OWN_KERNELS)
        for dtype in entry.dtypes
        for count in tokens
        if entry in entries and entry.op != "dequantize" and (entry.op != "expert_mlp" or dtype in formats)
    ]


def run_task(task: Task) -> int:
    """Launch once; 1 where that fails."""
    try:
        with torch.inference_mode():
            _launch_of(task)(0)
            torch.cuda.synchronize()
    except Exception:  # noqa: BLE001 - the process that measures meets the same failure and reports it
        return 1
    return 0


def _launch_of(task: Task) -> Run:
    device = torch.device(task.device)
    cell = Cell(task.shape_name, task.num_tokens, device, _store(task.shape_name, task.device))
    if task.settings is not None:
        return run_configured(cell, task.dtype, 1, task.settings)
    assert task.entry is not None
    return OWN_KERNELS[task.entry].build(cell, task.dtype, 1)


@lru_cache(maxsize=1)
def _store(shape_name: str, device: str) -> HollowStore:
    return HollowStore(SHAPES[shape_name], torch.device(device))


def hollow_experts(name: str, shape: MoEShape, device: torch.device) -> ExpertWeights:
    """One layer's experts with all sizes right and no values written."""
    one = make_experts(name, replace(shape, num_experts=1), device, seed=0)
    bits_E = None if one.bits_E is None else one.bits_E.expand(shape.num_experts).contiguous()
    fc1, fc2 = (_grown(matrices, shape.num_experts) for matrices in (one.fc1, one.fc2))
    return ExpertWeights(fc1=fc1, fc2=fc2, bits_E=bits_E)


def _grown(matrices: Matrices, num_experts: int) -> Matrices:
    def grow(tensor: Tensor, dim: int = 0) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = num_experts
        return tensor.new_empty(shape)

    if isinstance(matrices, DenseMatrices):
        return DenseMatrices(weight_ENC=grow(matrices.weight_ENC))
    if isinstance(matrices, Fp8Matrices):
        return Fp8Matrices(code_ENC=grow(matrices.code_ENC), scale=grow(matrices.scale))
    return replace(
        matrices, planes=tuple(grow(plane) for plane in matrices.planes), scale_PEGN=grow(matrices.scale_PEGN, 1)
    )
