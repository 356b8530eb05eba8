"""The decode kernel: a whole layer of experts in one launch, for up to 512 slots.

Shapes: T tokens, K experts per token, D model width.

Where it can be built and takes the layer, `run` plans, multiplies, activates and combines in one launch that waits for
nothing on the host, and gives the same result for the same input every time. See docs/concepts/cuda_decode.md.
"""

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.cuda_build import CudaUnavailableError, Kernel, counters, make_current
from thermoe.kernels.expert_mlp.cuda import build, driver
from thermoe.kernels.expert_mlp.cuda.boxes import Boxes, described, tensors_of
from thermoe.kernels.expert_mlp.cuda.geometry import MAX_SLOTS, geometry
from thermoe.kernels.expert_mlp.cuda.problem import COUNTER_WORDS, SCALE_MAP, ZERO_MAP, TensorMap, fill
from thermoe.kernels.expert_mlp.weights import ExpertWeights

_OTHER_WARPS = 4  # of layout.cuh: they stage activations and tell what is finished
_SHARED_BYTES = 227 * 1024  # of layout.cuh: all that a block may have


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What a launch may choose.

    Attributes:
        warps: that multiply, of each block: 8 or 12.
        together: whether the driver must start all blocks at once (a cooperative launch). Without it two launches on
            two streams at the same time can each hold processors that the other waits for.
        blocks: of the launch, one for each processor if None.
        ring: copies of weights that a warp has on their way, 1 to 4. More than keep the memory busy make whatever else
            is read wait behind them.
        overlaps: whether the launch begins before the one before it has ended: it lays its barriers meanwhile, and
            reads nothing but its parameters and the maps of its weights.
    """

    warps: int = 8
    together: bool = True
    blocks: int | None = None
    ring: int = 2
    overlaps: bool = True


def supports(experts: ExpertWeights, num_tokens: int, top_k: int, dtype: torch.dtype) -> bool:
    """Whether `run` takes these experts and this many slots; builds the kernel on the first call, never raises."""
    return refusal(experts, num_tokens, top_k, dtype) is None


def refusal(experts: ExpertWeights, num_tokens: int, top_k: int, dtype: torch.dtype) -> str | None:
    """Why `run` does not take these experts, in one sentence, or None."""
    if dtype != torch.bfloat16:
        return f"tokens of {dtype}: the kernel takes bf16"
    if not 1 <= num_tokens * top_k <= MAX_SLOTS:
        return f"{num_tokens} tokens of {top_k} slots: the kernel takes 1 to {MAX_SLOTS} slots"
    device = tensors_of(experts.fc1)[0].device
    if device.type != "cuda":
        return f"weights on {device}: the kernel runs on a GPU"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "the kernel needs compute capability 9.0: its copy engine, its 227 KiB of shared memory and their layout"
    cut = geometry(experts)
    if isinstance(cut, str):
        return cut
    return _kernel_or_refusal(cut.format, Tuning().warps, device.index)[1]


@cache
def _kernel_or_refusal(format_name: str, warps: int, device: int) -> tuple[Kernel | None, str | None]:
    """The loaded kernel, or why there is none; either is kept for the life of the process."""
    try:
        major, minor = torch.cuda.get_device_capability(device)
        code = build.cubin(format_name, warps=warps, architecture=f"sm_{major}{minor}")
        with torch.cuda.device(device):
            make_current(device)
            return Kernel(code, "thermoe_decode", shared_bytes=_SHARED_BYTES), None
    except (CudaUnavailableError, OSError) as err:
        return None, str(err)


def run(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights,
    out_TD: Tensor,
    *,
    tuning: Tuning | None = None,
) -> None:
    """Send each token through its experts and sum their outputs by its weights, into `out_TD`.

    A slot whose id is outside 0..E-1 or whose weight is exactly 0 contributes nothing and reads nothing. Launches of
    one stream, and those of one captured graph, share a few kilobytes of counters: replay a graph on one stream at a
    time, as CUDA itself asks.

    Args:
        x_TD: (T, D) bf16, contiguous.
        ids_TK: (T, K) int32 or int64, contiguous.
        weights_TK: (T, K) floating point, contiguous; other than float32 and bf16 they are converted first.
        experts: for which `supports` said yes.
        out_TD: (T, D) bf16, contiguous.

    Raises:
        ConfigError: `supports` would have said no.
        CudaUnavailableError: the driver refused the launch.
    """
    tuning = tuning or Tuning()
    device = x_TD.device
    cut = geometry(experts, tuning.warps)
    if isinstance(cut, str):
        raise ConfigError(f"the decode kernel cannot take {cut}")
    kernel, reason = _kernel_or_refusal(cut.format, tuning.warps, device.index)
    if kernel is None:
        raise ConfigError(f"the decode kernel could not be built: {reason}")
    x_TD, weights_TK, result_TD = _readable(x_TD, weights_TK, out_TD)
    slots = ids_TK.numel()
    hidden_NI = torch.empty((slots, experts.inter_size), dtype=torch.bfloat16, device=device)
    product_SND = torch.empty((cut.splits, slots, experts.d_model), dtype=torch.float32, device=device)
    problem = fill(cut, experts, x_TD, ids_TK, weights_TK, result_TD)
    problem.ring = tuning.ring
    problem.hidden, problem.product = hidden_NI.data_ptr(), product_SND.data_ptr()
    for m, matrices in enumerate((experts.fc1, experts.fc2)):
        maps = described(matrices, m)
        for plane, weights in enumerate(maps.weights):
            problem.map[m][plane] = _map_of(*weights)
        if maps.scale is not None:
            problem.map[m][SCALE_MAP] = _map_of(*maps.scale)
        if maps.zero is not None:
            problem.map[m][ZERO_MAP] = _map_of(*maps.zero)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        make_current(device.index)
        problem.counters = counters("decode", device.index, stream, COUNTER_WORDS)
        kernel.launch(
            problem,
            blocks=tuning.blocks or torch.cuda.get_device_properties(device).multi_processor_count,
            threads=32 * (tuning.warps + _OTHER_WARPS),
            stream=stream,
            resident=tuning.together,
            overlaps=tuning.overlaps,
        )
    if result_TD is not out_TD:
        out_TD.copy_(result_TD)


def _map_of(tensor: Tensor, boxes: Boxes) -> ctypes.Array[ctypes.c_uint64]:
    return TensorMap.from_buffer_copy(driver.tensor_map(tensor.data_ptr(), boxes))


def _readable(x_TD: Tensor, weights_TK: Tensor, out_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same, where the kernel's wide loads and stores are aligned and its types are known."""
    if weights_TK.dtype not in (torch.float32, torch.bfloat16):
        weights_TK = weights_TK.float()
    if x_TD.data_ptr() % 16:
        x_TD = x_TD.clone()
    return x_TD, weights_TK, out_TD if out_TD.data_ptr() % 16 == 0 else torch.empty_like(out_TD)
