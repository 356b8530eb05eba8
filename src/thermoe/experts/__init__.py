"""Experts: how their weights are held and what they compute."""

from thermoe.experts.bank import ExpertBank
from thermoe.experts.codes import QuantizedMatrix
from thermoe.experts.fp8 import quantize_fp8
from thermoe.experts.fused import dense_experts, experts_of
from thermoe.experts.mixed import ExpertFormat, compressed, make_experts
from thermoe.experts.moments import Moments, MomentWatch
from thermoe.experts.quantize import quantize
from thermoe.experts.quantized import Fp8Expert, QuantizedExpert
from thermoe.experts.saving import load_bank, save_bank
from thermoe.experts.simple import ExpertKind, SimpleExpert
from thermoe.experts.tuning import tune_scales

__all__ = [
    "ExpertBank",
    "ExpertFormat",
    "ExpertKind",
    "Fp8Expert",
    "MomentWatch",
    "Moments",
    "QuantizedExpert",
    "QuantizedMatrix",
    "SimpleExpert",
    "compressed",
    "dense_experts",
    "experts_of",
    "load_bank",
    "make_experts",
    "quantize",
    "quantize_fp8",
    "save_bank",
    "tune_scales",
]
