"""The grouped kernel: both products of a layer for many tokens, in tiles of a dispatch plan.

Shapes: T tokens, K experts per token, N = T * K slots, E experts, D model width, I expert width.

bf16 weights take one launch for both products, e4m3 weights with e4m3 tokens two, between which the hidden values are
quantised. See docs/concepts/cuda_grouped.md.
"""

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.cuda_build import CudaUnavailableError, Kernel, counters, make_current
from thermoe.kernels.dispatch import DispatchPlan, dispatch_plan
from thermoe.kernels.expert_mlp.cuda_grouped import driver
from thermoe.kernels.expert_mlp.cuda_grouped.build import Build, cubin
from thermoe.kernels.expert_mlp.cuda_grouped.problem import (
    ACTIVATIONS,
    COUNTER_WORDS,
    PLACE_BOX_ROWS,
    Problem,
    fill,
    layer_refusal,
    source_columns,
    weights_of,
)
from thermoe.kernels.expert_mlp.weights import ExpertWeights, Fp8Matrices, PlaneMatrices

_SHARED_BYTES = 227 * 1024  # of layout.cuh: all that a block may have
_THREADS = 384
_FIRST, _SECOND = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What a launch may choose.

    Attributes:
        tokens, stages, lead, pair, ahead, keep: of `Build`.
        lag: experts between the first product of one and its second, in one launch; None: all first products come
            first; -1: two launches.
    """

    tokens: int = 160
    stages: int = 4
    lead: int = 2
    pair: bool = True
    ahead: int = 0
    keep: int = 0
    lag: int | None = None


_CODES = Tuning(tokens=144, lead=1, pair=False)
_BY_PLANES = {0: Tuning(), 1: _CODES, 2: _CODES, 3: Tuning(tokens=128, stages=3, lead=1, pair=False)}


def supports(experts: ExpertWeights, num_tokens: int, top_k: int, dtype: torch.dtype) -> bool:
    """Whether `run` takes these experts and this many slots; builds the kernel on the first call, never raises."""
    return refusal(experts, num_tokens, top_k, dtype) is None


def refusal(experts: ExpertWeights, num_tokens: int, top_k: int, dtype: torch.dtype) -> str | None:
    """Why `run` does not take these experts, in one sentence, or None."""
    if dtype != torch.bfloat16:
        return f"tokens of {dtype}: the kernel takes bf16"
    reason = layer_refusal(experts, num_tokens * top_k)
    if reason is not None:
        return reason
    device = weights_of(experts.fc1).device
    if device.type != "cuda":
        return f"weights on {device}: the kernel runs on a GPU"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "the kernel needs compute capability 9.0: its matrix products of warpgroups and its copy engine"
    return _kernel_or_refusal(build_of(experts), device.index)[1]


def build_of(experts: ExpertWeights, tuning: Tuning | None = None) -> Build:
    """What has to be compiled for a layer that `layer_refusal` lets pass."""
    planes = len(experts.fc1.planes) if isinstance(experts.fc1, PlaneMatrices) else 0
    tuning = tuning or _BY_PLANES[planes]
    return Build(
        activation=ACTIVATIONS[experts.activation],
        eight=isinstance(experts.fc1, Fp8Matrices),
        tokens=tuning.tokens,
        stages=tuning.stages,
        lead=tuning.lead,
        pair=tuning.pair,
        planes=planes,
        nested=isinstance(experts.fc1, PlaneMatrices) and experts.fc1.nested,
        ahead=tuning.ahead,
        keep=tuning.keep,
    )


@cache
def _kernel_or_refusal(build: Build, device: int) -> tuple[Kernel | None, str | None]:
    """The loaded kernel, or why there is none; either is kept for the life of the process."""
    try:
        with torch.cuda.device(device):
            make_current(device)
            return Kernel(cubin(build), "thermoe_grouped", shared_bytes=_SHARED_BYTES), None
    except (CudaUnavailableError, OSError) as err:
        return None, str(err)


def run(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights,
    out_TD: Tensor,
    *,
    plan: DispatchPlan | None = None,
    tuning: Tuning | None = None,
) -> None:
    """Send each token through its experts and sum their outputs by its weights, into `out_TD`.

    A slot whose id is outside 0..E-1 or whose weight is exactly 0 contributes nothing and reads nothing. e4m3 weights
    meet tokens and hidden values that are rounded to e4m3, each row by its own largest value. Launches of one stream,
    and those of one captured graph, share a few kilobytes of counters: replay a graph on one stream at a time, as CUDA
    itself asks.

    Args:
        x_TD: (T, D) bf16, contiguous.
        ids_TK: (T, K) int32 or int64, contiguous.
        weights_TK: (T, K) floating point, contiguous.
        experts: for which `supports` said yes.
        out_TD: (T, D) bf16, contiguous.
        plan: the dispatch plan of `ids_TK` and `weights_TK`; made here if None.
        tuning: how the work is cut; what was measured to be best if None.

    Raises:
        ConfigError: `supports` would have said no.
        CudaUnavailableError: the driver refused the launch.
    """
    from thermoe.kernels.combine.triton import combine_triton

    call = Call(x_TD, ids_TK, experts, plan or dispatch_plan(ids_TK, weights_TK, experts.num_experts), tuning)
    call.products()
    combine_triton(call.y_ND, weights_TK, ids_TK, experts.num_experts, out_TD)


class Call:
    """The products of one call, and the memory between them."""

    def __init__(
        self, x_TD: Tensor, ids_TK: Tensor, experts: ExpertWeights, plan: DispatchPlan, tuning: Tuning | None = None
    ) -> None:
        """Take memory for hidden values and outputs.

        Raises:
            ConfigError: the kernel does not take the layer, or could not be built.
        """
        reason = layer_refusal(experts, ids_TK.numel())
        if reason is not None:
            raise ConfigError(f"the grouped kernel cannot take {reason}")
        build = build_of(experts, tuning)
        self._tuning, self._build, self._experts, self._plan = tuning or Tuning(), build, experts, plan
        kernel, reason = _kernel_or_refusal(build, x_TD.device.index)
        if kernel is None:
            raise ConfigError(f"the grouped kernel could not be built: {reason}")
        self._kernel = kernel
        self.x_TD = x_TD if x_TD.data_ptr() % 16 == 0 else x_TD.clone()
        self._top_k = ids_TK.shape[1]
        self.hidden_NI = x_TD.new_empty(ids_TK.numel(), source_columns(experts)[1])
        self.y_ND = x_TD.new_empty(ids_TK.numel(), experts.d_model)

    def products(self) -> None:
        """Both products, in one launch where nothing has to happen between them."""
        if isinstance(self._experts.fc1, Fp8Matrices) or self._tuning.lag == -1:
            self.first()
            self.second()
        else:
            lag = self._experts.num_experts if self._tuning.lag is None else self._tuning.lag
            self._launch((self.x_TD, self.hidden_NI), _FIRST | _SECOND, lag)

    def first(self) -> None:
        """Activated values of each slot, in the order of the plan, into `hidden_NI`."""
        self._launch((self.x_TD, self.x_TD), _FIRST)

    def second(self) -> None:
        """Outputs of each slot into `y_ND`, whose rows are slots; those of dropped slots stay as they were."""
        self._launch((self.hidden_NI, self.hidden_NI), _SECOND)

    def _launch(self, sources: tuple[Tensor, Tensor], parts: int, lag: int = 0) -> None:
        experts, device = self._experts, self.x_TD.device
        problem = fill(experts, self._plan, self._top_k, self.hidden_NI, self.y_ND)
        problem.parts, problem.lag = parts, lag
        kept = self._name_sources(problem, sources)
        for m, matrices in enumerate((experts.fc1, experts.fc2)):
            if isinstance(matrices, PlaneMatrices):
                for part, plane in enumerate(matrices.planes):
                    described = driver.code_map(plane.data_ptr(), plane.numel() // plane.shape[-1])
                    problem.plane[m][part] = driver.TensorMap.from_buffer_copy(described)
            else:
                problem.map[m] = _described(weights_of(matrices), halves=m == 1)
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            make_current(device.index)
            problem.counters = counters("grouped", device.index, stream, COUNTER_WORDS)
            blocks = torch.cuda.get_device_properties(device).multi_processor_count
            blocks -= blocks % 2 if self._build.pair else 0
            self._kernel.launch(problem, blocks=blocks, threads=_THREADS, stream=stream)
        del kept

    def _name_sources(self, problem: Problem, sources: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Point the problem at its sources, quantised where the weights are e4m3; returns what must stay alive."""
        if isinstance(self._experts.fc1, PlaneMatrices):
            from thermoe.kernels.expert_mlp.triton_order import in_code_order

            sources = (in_code_order(sources[0]), sources[1])
        if not isinstance(self._experts.fc1, Fp8Matrices):
            problem.tokens, problem.hidden_map = sources[0].data_ptr(), _described(sources[1], box_rows=PLACE_BOX_ROWS)
            return list(sources)
        from thermoe.kernels.expert_mlp.triton_quantize import quantize_rows

        code, scale = quantize_rows(sources[0])
        problem.tokens, problem.hidden_map = code.data_ptr(), _described(code, box_rows=PLACE_BOX_ROWS)
        for m in range(2):
            problem.source_scale[m] = scale.data_ptr()
        return [code, scale]


def _described(matrix: Tensor, *, halves: bool = False, box_rows: int = 64) -> ctypes.Array[ctypes.c_uint64]:
    rows, row_bytes = matrix.numel() // matrix.shape[-1], matrix.shape[-1] * matrix.element_size()
    described = driver.tensor_map(matrix.data_ptr(), rows, row_bytes, halves=halves, box_rows=box_rows)
    return driver.TensorMap.from_buffer_copy(described)
