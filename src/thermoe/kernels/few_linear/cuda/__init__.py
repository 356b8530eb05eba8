"""Linear layers of few rows in CUDA C++, for bf16 on compute capability 9.0."""

from thermoe.kernels.few_linear.cuda.launch import Tuning, refusal, run

__all__ = ["Tuning", "refusal", "run"]
