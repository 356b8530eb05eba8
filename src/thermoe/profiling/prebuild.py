"""Building CUDA kernels ahead in several threads, so that the GPU does not wait for a compiler case by case.

NVRTC compiles outside Python's lock, so threads help, and what one built the process keeps. Triton's kernels are not
among them: they are compiled when they are first run.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from thermoe.profiling.case import Case
from thermoe.profiling.formats import WeightCache, make_experts
from thermoe.profiling.operations import Setup, find_operation

MOST_THREADS = 12
_GROUP_SIZES = {128: (256, 256), 64: (256, 128), 32: (256, 64)}
"""Model and expert widths whose scales lie in groups of these sizes (`Case.group_size`)."""
_BUILT_BY_SHAPE = ("router_topk", "dispatch")


def prebuild(cases: Sequence[Case], device: torch.device) -> int:
    """Build what the cases will need; how many builds there were. What fails here is told when it is measured."""
    if device.type != "cuda":
        return 0
    tasks = [*_formats(cases, device), *_routing(cases, device)]
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        list(pool.map(_attempt, tasks))
    torch.cuda.synchronize(device)
    return len(tasks)


def _attempt(task: Callable[[], None]) -> None:
    try:
        task()
    except Exception:  # noqa: BLE001 - the case that needs this build meets the same failure and reports it
        return


def _formats(cases: Sequence[Case], device: torch.device) -> list[Callable[[], None]]:
    """One task for each kernel of experts: they are the same for all shapes."""
    kinds = {}
    for case in cases:
        if case.op == "expert_mlp" and case.impl == "thermoe":
            stored = "bank8" if case.dtype.startswith("bank") else case.dtype
            kinds[stored, case.group_size, case.tokens > 64] = replace(case, dtype=stored)
    return [lambda case=case: _ask(case, device) for case in kinds.values()]  # type: ignore[misc]


def _ask(case: Case, device: torch.device) -> None:
    """Asking whether a kernel takes a layer builds it."""
    from thermoe.kernels.expert_mlp import cuda, cuda_grouped

    hidden_size, inter_size = _GROUP_SIZES[case.group_size or 128]
    small = replace(
        case, hidden_size=hidden_size, inter_size=inter_size, num_experts=2, top_k=1, routed_rows=2, distinct_experts=2
    )
    torch.cuda.set_device(device)
    experts = make_experts(small, device, seed=0)
    if case.tokens > 64:
        cuda_grouped.supports(experts, 128, 1, torch.bfloat16)
    else:
        cuda.supports(experts, 2, 1, torch.bfloat16)


def _routing(cases: Sequence[Case], device: torch.device) -> list[Callable[[], None]]:
    kinds = {
        (c.op, c.num_experts, c.top_k, c.tokens): c for c in cases if c.op in _BUILT_BY_SHAPE and c.impl != "torch"
    }
    return [lambda case=case: _run_once(case, device) for case in kinds.values()]  # type: ignore[misc]


def _run_once(case: Case, device: torch.device) -> None:
    torch.cuda.set_device(device)
    setup = Setup(device=device, steps=1, weights=WeightCache(device, 0.0))
    with torch.no_grad():
        find_operation(case).build(case, setup).run(0)
