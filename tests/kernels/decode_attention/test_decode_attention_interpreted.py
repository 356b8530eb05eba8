"""The kernel's tests in Triton's interpreter."""

from pathlib import Path


def test_kernels_pass_in_the_interpreter(passed_in_the_interpreter):
    assert passed_in_the_interpreter(Path(__file__).with_name("test_decode_attention_triton.py")) >= 19
