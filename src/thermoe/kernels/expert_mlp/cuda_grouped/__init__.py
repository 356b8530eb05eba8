"""A CUDA C++ kernel for many tokens, built on the spot: both products in tiles of a dispatch plan."""

from thermoe.kernels.expert_mlp.cuda_grouped.launch import Tuning, refusal, run, supports

__all__ = ["Tuning", "refusal", "run", "supports"]
