"""Quantised experts with random codes for a whole model, made in no time.

E experts, N rows, C columns, C' = C rounded up to a multiple of 128, G scale groups, P precisions.
"""

from typing import Any

import torch
from torch import Tensor

from thermoe.experts import ExpertBank
from thermoe.integrations.experts_held import QuantisedBlock, expert_blocks
from thermoe.integrations.experts_quantised import QuantisedExperts
from thermoe.kernels.expert_mlp import ExpertWeights, Fp8Matrices, PlaneMatrices
from thermoe.kernels.expert_mlp.planes import PLANE_BITS
from thermoe.kernels.expert_mlp.weights import CHUNK, PIECE_BYTES

GROUP_SIZE = 128
_BITS = {"int2": 2, "int4": 4, "int8": 8}
_BANKS = {"bank": 8, "bank8": 8, "bank4": 4, "bank2": 2}
_STD = 0.02


def random_quantised(model: Any, held_as: str) -> QuantisedExperts:
    """As `quantise_experts` with groups of 128, of weights that nobody knows: SwiGLU, without biases."""
    blocks = {name: _random_block(block, held_as) for name, block in expert_blocks(model).items()}
    return QuantisedExperts(model, held_as, blocks)


def _random_block(block: Any, held_as: str) -> QuantisedBlock:
    fc1, fc2 = block.gate_up_proj, block.down_proj
    if held_as in _BANKS:
        bank = ExpertBank(_planes(fc1, 8, 3), _planes(fc2, 8, 3))
        bank.set_bits(_BANKS[held_as])
        return QuantisedBlock(bank.weights(), bank)
    if held_as in _BITS:
        bits = _BITS[held_as]
        return QuantisedBlock(ExpertWeights(fc1=_planes(fc1, bits, 1), fc2=_planes(fc2, bits, 1)))
    return QuantisedBlock(ExpertWeights(fc1=_fp8(fc1), fc2=_fp8(fc2)))


def _planes(weight_ENC: Tensor, bits: int, precisions: int) -> PlaneMatrices:
    experts, rows, columns = weight_ENC.shape
    device = weight_ENC.device
    chunks = -(-columns // CHUNK)
    groups = -(-columns // GROUP_SIZE)
    planes = [
        torch.randint(0, 256, (experts, chunks * width // 2, rows, PIECE_BYTES), dtype=torch.uint8, device=device)
        for width in PLANE_BITS[bits]
    ]
    # Codes are uniform: 2**b levels a scale apart spread by 2**b / sqrt(12) scales.
    read = (2, 4, 8)[:precisions] if precisions > 1 else (bits,)
    scales = torch.tensor([_STD * 12**0.5 / 2**b for b in read], device=device).half()
    scale_PEGN = scales.view(-1, 1, 1, 1).expand(-1, experts, groups, rows).contiguous()
    return PlaneMatrices(
        planes=tuple(planes), scale_PEGN=scale_PEGN, zero_PEGN=None, columns=columns, group_size=GROUP_SIZE
    )


def _fp8(weight_ENC: Tensor) -> Fp8Matrices:
    scale_EN = torch.full(weight_ENC.shape[:2], _STD, dtype=torch.float32, device=weight_ENC.device)
    return Fp8Matrices(code_ENC=(weight_ENC.float() / _STD).to(torch.float8_e4m3fn), scale=scale_EN)
