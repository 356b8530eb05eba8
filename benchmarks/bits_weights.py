"""What `benchmarks.bits` compares: quantisers, and what they are calibrated on."""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thermoe.experts import Moments, MomentWatch, QuantizedMatrix, quantize, quantize_fp8, tune_scales
from thermoe.experts.codes import NESTED_BITS
from thermoe.kernels.expert_mlp import dequantize
from thermoe.workloads import TextBlocks

BATCH, BLOCK, SEED = 16, 512, 0
OWN_LENGTH = 256  # tokens of a sampled row
OWN_ROWS = 4096  # sampled at once
TRUNCATED = "int2 truncated from int4"

Weights = dict[tuple[str, str], Tensor]
Quantiser = Callable[[Tensor, Tensor | None], dict[str, Tensor]]


def quantisers_of(group: int) -> dict[str, Quantiser]:
    """Name -> what makes dense weights by variant."""

    def plain(bits: int, calibrated: bool) -> Quantiser:
        def run(weight: Tensor, moment: Tensor | None) -> dict[str, Tensor]:
            matrix = quantize(weight, bits, group_size=group, moment_ECC=moment if calibrated else None)
            made = {f"int{bits}": matrix.weights()}
            return made | ({TRUNCATED: _truncated(matrix)} if bits == 4 else {})

        return run

    def uncorrected(weight: Tensor, _: Tensor | None) -> dict[str, Tensor]:
        made = {b: quantize(weight, b, group_size=group, unbiased=False) for b in (4, 2)}
        return {"int4": made[4].weights(), TRUNCATED: _truncated(made[4]), "int2": made[2].weights()}

    def bank(calibrated: bool) -> Quantiser:
        def run(weight: Tensor, moment: Tensor | None) -> dict[str, Tensor]:
            matrix = quantize(weight, NESTED_BITS, group_size=group, moment_ECC=moment if calibrated else None)
            return {f"int{b}": matrix.weights(b) for b in NESTED_BITS}

        return run

    def fp8(weight: Tensor, _: Tensor | None) -> dict[str, Tensor]:
        return {
            "by row": dequantize(quantize_fp8(weight)),
            "by block": dequantize(quantize_fp8(weight, blocks=True)),
        }

    quantisers: dict[str, Quantiser] = {"least error": uncorrected}
    quantisers |= {f"nearest {b}": plain(b, calibrated=False) for b in (8, 4, 3, 2)}
    quantisers |= {f"compensated {b}": plain(b, calibrated=True) for b in (8, 4, 3, 2)}
    return quantisers | {"bank": bank(calibrated=True), "bank uncalibrated": bank(calibrated=False), "fp8": fp8}


def tuned_bank(
    model: Any, original: Weights, moments: dict[str, Moments], batches: list[Tensor], options: argparse.Namespace
) -> Quantiser:
    """The calibrated bank with the scales of int2 tuned on the whole model; the other precisions stay as they are."""
    began_s = time.perf_counter()
    matrices = {
        ".".join(key): quantize(weight, NESTED_BITS, group_size=options.group, moment_ECC=_moment(moments, key))
        for key, weight in original.items()
    }
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(SEED)).tolist()
    shuffled = [batches[i] for i in order]
    steps, rate = options.tuning_steps, options.tuning_rate
    tuned = iter(tune_scales(model, matrices, shuffled, bits=2, steps=steps, rate=rate).values())
    print(f"tuning {time.perf_counter() - began_s:.1f} s", flush=True)
    return lambda _weight, _moment: {"int2": next(tuned).weights(2)}


def _joined(batches: list[Tensor], rows: int) -> list[Tensor]:
    """Batches of so many rows, those of one length together."""
    lengths = sorted({ids.shape[1] for ids in batches})
    return [some for n in lengths for some in torch.cat([i for i in batches if i.shape[1] == n]).split(rows)]


def _truncated(matrix: QuantizedMatrix) -> Tensor:
    """Int2 the natural way: the int4 codes' highest two bits with the int4 scale, four times as wide."""
    code = (matrix.code_ENC >> 2).float() - 1.5
    scale = matrix.scale_PENG[0].float().repeat_interleave(matrix.group_size, dim=-1)
    return 4.0 * code * scale[..., : matrix.columns]


def _blocks_of(model: nn.Module) -> dict[str, Any]:
    """Name -> experts block."""
    found = {name: m for name, m in model.named_modules() if hasattr(m, "gate_up_proj") and hasattr(m, "down_proj")}
    blocks = {name: m for name, m in found.items() if getattr(m.gate_up_proj, "ndim", 0) == 3}
    if not blocks or any(getattr(m, "is_transposed", False) for m in blocks.values()):
        raise SystemExit("benchmarks.bits needs a model whose experts are (experts, rows, columns), e.g. Qwen3-MoE")
    return blocks


def _matrices(model: nn.Module) -> Iterator[tuple[tuple[str, str], nn.Parameter]]:
    for name, block in _blocks_of(model).items():
        for part in ("gate_up_proj", "down_proj"):
            yield (name, part), getattr(block, part)


def copies_of(model: nn.Module) -> Weights:
    """The weights of all experts as they are."""
    return {key: parameter.detach().clone() for key, parameter in _matrices(model)}


@torch.no_grad()
def set_weights(model: nn.Module, weights: Weights) -> None:
    """Puts other weights into the experts of the model."""
    for key, parameter in _matrices(model):
        parameter.copy_(weights[key])


def variants_of(original: Weights, quantiser: Quantiser, moments: dict[str, Moments]) -> dict[str, Weights]:
    """Variant -> dense weights of all experts."""
    made: dict[str, Weights] = {}
    for key, weight in original.items():
        for variant, dense in quantiser(weight, _moment(moments, key)).items():
            made.setdefault(variant, {})[key] = dense
    return made


def _moment(moments: dict[str, Moments], key: tuple[str, str]) -> Tensor:
    name, part = key
    return moments[name].fc1_moment() if part == "gate_up_proj" else moments[name].fc2_moment()


def calibration_batches(model: Any, tokenizer: Any, options: argparse.Namespace) -> list[Tensor]:
    """(R, S) token ids each, of R rows or what is left."""
    batches = []
    for path in options.calibration_text:
        blocks = text_blocks([path], tokenizer, options.calibration_tokens + BATCH)
        batches += [blocks.batch(i).input_ids.to(options.device) for i in range(len(blocks))]
    if options.own_tokens >= OWN_LENGTH:
        batches += _own_text(model, options.own_tokens // OWN_LENGTH)
    if not batches:
        raise SystemExit("nothing to calibrate on: give --calibration-text or --own-tokens")
    return _joined(batches, options.calibration_rows)


@torch.no_grad()
def moments_of(model: Any, batches: list[Tensor]) -> dict[str, Moments]:
    """What the experts of each layer are given while the model reads the batches."""
    with MomentWatch(_blocks_of(model)) as watch:
        for ids in batches:
            model(ids, use_cache=False, logits_to_keep=1)
    return watch.moments


def _own_text(model: Any, rows: int) -> list[Tensor]:
    """`rows` rows of 256 tokens sampled from the model, each from a random first token."""
    first_R1 = torch.randint(model.config.vocab_size, (rows, 1), generator=torch.Generator().manual_seed(SEED))
    return [
        model.generate(
            first,
            attention_mask=torch.ones_like(first),
            min_new_tokens=OWN_LENGTH - 1,
            max_new_tokens=OWN_LENGTH - 1,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            pad_token_id=0,
        )
        for first in first_R1.to(model.device).split(OWN_ROWS)
    ]


def text_blocks(paths: list[Path], tokenizer: Any, tokens: int) -> TextBlocks:
    """The first tokens of the texts, in 16 rows and blocks of 512 positions."""
    return TextBlocks(paths, tokenizer, batch_size=BATCH, block_size=BLOCK, max_tokens=tokens)
