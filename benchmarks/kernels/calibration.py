"""What the card gives today: the ceilings that floors are computed from."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.card import CALIBRATION_S, COPY_BYTES, MATMUL_SIZE
from benchmarks.kernels.floors import REFERENCE_CARD, Card
from thermoe.profiling.draw import Draw
from thermoe.profiling.loop import CudaLoop, make_loop

BURST_WARM_UP, BURST = 3, 10
FP8_CAPABILITY = (8, 9)
CPU_COPY_BYTES, CPU_MATMUL_SIZE = 1 << 24, 256


def calibrate(device: torch.device, seconds: float = CALIBRATION_S) -> dict[str, float | None]:
    """Copy of 4 GiB [TB/s], bf16 matrix product in a burst of ten and sustained, fp8 sustained [TFLOP/s].

    The burst comes first, on a card that is not yet warm. On a CPU a small copy and a small float32 product.
    """
    if device.type != "cuda":
        return _calibrate_cpu(device)
    burst, sustained = _matmul_tflop_s(device, seconds)
    figures = {
        "copy_tb_s": _copy_tb_s(device, seconds),
        "matmul_tflop_s": sustained,
        "matmul_burst_tflop_s": burst,
        "fp8_tflop_s": _fp8_tflop_s(device, seconds),
    }
    torch.cuda.empty_cache()
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def card_of(calibration: dict[str, float | None]) -> Card:
    """The card that a calibration describes; where fp8 has no product of its own it goes at the rate of bf16."""
    copy_tb_s, matmul = calibration["copy_tb_s"], calibration["matmul_tflop_s"]
    assert copy_tb_s is not None
    assert matmul is not None
    return Card(copy_tb_s=copy_tb_s, matmul_tflop_s=matmul, fp8_tflop_s=calibration["fp8_tflop_s"] or matmul)


def calibration_line(calibration: dict[str, float | None]) -> str:
    """The calibration in a line of text, beside the reference card."""
    card, ref = card_of(calibration), REFERENCE_CARD
    return (
        f"card: copy {card.copy_tb_s:.3g} TB/s (reference {ref.copy_tb_s:.3g}), matrix product sustained "
        f"{card.matmul_tflop_s:.4g} TFLOP/s (reference {ref.matmul_tflop_s:.4g}), "
        f"burst {calibration['matmul_burst_tflop_s']}, fp8 {calibration['fp8_tflop_s']}"
    )


def _copy_tb_s(device: torch.device, seconds: float) -> float:
    source = Draw(device, torch.bfloat16).normal(COPY_BYTES // 2)
    target = torch.empty_like(source)
    copies, took_s = CudaLoop(lambda: target.copy_(source)).sustain(seconds, lambda: None)
    return 2.0 * COPY_BYTES * copies / took_s / 1e12


def _matmul_tflop_s(device: torch.device, seconds: float) -> tuple[float, float]:
    draw = Draw(device, torch.bfloat16)
    a, b = draw.normal(MATMUL_SIZE, MATMUL_SIZE), draw.weights(MATMUL_SIZE, MATMUL_SIZE)
    out = torch.empty_like(a)
    loop = CudaLoop(lambda: torch.mm(a, b, out=out))
    loop.each(BURST_WARM_UP)
    burst_s = statistics.median(loop.each(BURST))
    return _product_tflop() / burst_s, _sustained_tflop_s(lambda: torch.mm(a, b, out=out), seconds)


def _fp8_tflop_s(device: torch.device, seconds: float) -> float | None:
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return None
    draw = Draw(device, torch.bfloat16)
    a, b = (draw.normal(MATMUL_SIZE, MATMUL_SIZE).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    try:
        return _sustained_tflop_s(
            lambda: torch._scaled_mm(a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16), seconds
        )
    except RuntimeError as err:
        print(f"no fp8 matrix product, floors of fp8 go by bf16: {err}")
        return None


def _sustained_tflop_s(product: Callable[[], Tensor], seconds: float) -> float:
    products, took_s = CudaLoop(product).sustain(seconds, lambda: None)
    return _product_tflop() * products / took_s


def _product_tflop() -> float:
    return 2.0 * MATMUL_SIZE**3 / 1e12


def _calibrate_cpu(device: torch.device) -> dict[str, float | None]:
    source = Draw(device, torch.float32).normal(CPU_COPY_BYTES // 4)
    target = torch.empty_like(source)
    matrix = source[: CPU_MATMUL_SIZE**2].view(CPU_MATMUL_SIZE, CPU_MATMUL_SIZE)
    copy_s = statistics.median(make_loop(lambda: target.copy_(source), device).each(3))
    product_s = statistics.median(make_loop(lambda: matrix @ matrix, device).each(3))
    return {
        "copy_tb_s": 2.0 * CPU_COPY_BYTES / copy_s / 1e12,
        "matmul_tflop_s": 2.0 * CPU_MATMUL_SIZE**3 / product_s / 1e12,
        "matmul_burst_tflop_s": None,
        "fp8_tflop_s": None,
    }
