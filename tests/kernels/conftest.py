"""Triton kernels run on a GPU, or in the interpreter: in a process of its own, because Triton reads the variable that
switches it on at its import.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

OLD_NUMPY_USE = "ignore:Conversion of an array with ndim > 0:DeprecationWarning"  # by the interpreter of Triton 3.6

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*/test_*_triton.py"]  # each has a test that runs it through `passed_in_the_interpreter`


@pytest.fixture
def passed_in_the_interpreter():
    """A function: how many tests of these files pass in Triton's interpreter, where all must."""

    def run(*tests: Path, quiet: tuple[str, ...] = ()) -> int:
        if torch.cuda.is_available():
            pytest.skip("the same tests run on the GPU")
        warnings = [option for warning in (OLD_NUMPY_USE, *quiet) for option in ("-W", warning)]
        command = [sys.executable, "-m", "pytest", *warnings, "-m", "not gpu", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *map(str, tests)],
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return int(re.search(r"(\d+) passed", done.stdout).group(1))

    return run
