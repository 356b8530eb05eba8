"""CUDA sources as libraries for a CPU; what stands in for the device lies in `cuda_on_cpu`."""

import ctypes
import subprocess
from pathlib import Path

STAND_INS = Path(__file__).parent / "cuda_on_cpu"


def cpu_library(source: str, library: Path, *folders: Path) -> ctypes.CDLL:
    """Compiles a translation unit, which may include files of these folders, and loads it.

    Libraries share nothing: the loader would else give them all one copy of a variable that the stand-ins declare.
    """
    options = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-fno-gnu-unique"]
    included = [f"-I{place}" for place in (*folders, STAND_INS)]
    subprocess.run(
        ["g++", *options, *included, "-x", "c++", "-", "-o", str(library)], input=source.encode(), check=True
    )
    return ctypes.CDLL(str(library))
