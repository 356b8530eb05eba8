"""The Triton tests of routing and dispatch in the interpreter: a process of its own, because Triton reads the variable
at its import.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

KERNELS = Path(__file__).resolve().parents[1]
OLD_NUMPY_USE = "ignore:Conversion of an array with ndim > 0:DeprecationWarning"  # by the interpreter of Triton 3.6
NOT_A_NUMBER = "ignore::RuntimeWarning"  # numpy remarks on what the kernels handle: NaN logits, an infinite price
TESTS = [KERNELS / "route/test_route_triton.py", KERNELS / "dispatch/test_plan_triton.py"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the same tests run on the GPU")
def test_kernels_pass_in_the_interpreter():
    options = ["-W", OLD_NUMPY_USE, "-W", NOT_A_NUMBER, "-m", "not gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, TESTS)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 25
