"""A CUDA C++ kernel for decode sizes, built on the spot: the whole layer of experts in one launch."""

from thermoe.kernels.expert_mlp.cuda.decode import Tuning, refusal, run, supports

__all__ = ["Tuning", "refusal", "run", "supports"]
