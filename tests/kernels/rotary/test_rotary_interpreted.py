"""The kernel's tests in Triton's interpreter: a process of its own, because Triton reads the variable at its import."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

OLD_NUMPY_USE = "ignore:Conversion of an array with ndim > 0:DeprecationWarning"  # by the interpreter of Triton 3.6


@pytest.mark.skipif(torch.cuda.is_available(), reason="the same tests run on the GPU")
def test_the_kernel_passes_in_the_interpreter():
    tests = Path(__file__).with_name("test_rotary_triton.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", OLD_NUMPY_USE, "-m", "not gpu", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 8
