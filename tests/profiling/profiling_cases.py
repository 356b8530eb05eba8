"""Cases and workbenches that the tests of the profiler share."""

import torch

from thermoe.profiling.candidates import expert_case, row_case
from thermoe.profiling.case import Case
from thermoe.profiling.formats import WeightCache
from thermoe.profiling.operations import Setup, find_operation

CPU = torch.device("cpu")
SIZES = (24, 10, 7, 3)


def make_case(**changes) -> Case:
    values = {"op": "expert_mlp", "impl": "loop", "hidden_size": 24, "inter_size": 10, "num_experts": 7, "top_k": 3}
    return Case(**(values | {"routed_rows": 39, "distinct_experts": 5, "dtype": "float32"} | changes))


def make_setup(steps=2, cache_bytes=0.0) -> Setup:
    return Setup(device=CPU, steps=steps, weights=WeightCache(CPU, 1e9), cache_bytes=cache_bytes)


def build(case: Case, steps=2, cache_bytes=0.0):
    with torch.no_grad():
        return find_operation(case).build(case, make_setup(steps, cache_bytes))


__all__ = ["CPU", "SIZES", "build", "expert_case", "make_case", "make_setup", "row_case"]
