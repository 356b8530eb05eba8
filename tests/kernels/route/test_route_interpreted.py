"""The Triton tests of routing and dispatch in the interpreter."""

from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1]
TESTS = KERNELS / "route/test_route_triton.py", KERNELS / "dispatch/test_plan_triton.py"
NOT_A_NUMBER = "ignore::RuntimeWarning"  # numpy remarks on what the kernels handle: NaN logits, an infinite price


def test_kernels_pass_in_the_interpreter(passed_in_the_interpreter):
    assert passed_in_the_interpreter(*TESTS, quiet=(NOT_A_NUMBER,)) >= 25
