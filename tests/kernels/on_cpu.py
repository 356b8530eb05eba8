"""CUDA sources as libraries for a CPU; what stands in for the device lies in `cuda_on_cpu`."""

import ctypes
import subprocess
from pathlib import Path

STAND_INS = Path(__file__).parent / "cuda_on_cpu"
FAILED = "a deadlock, or an address that the device would refuse: see stderr"


def cpu_library(source: str, library: Path, *folders: Path) -> ctypes.CDLL:
    """Compiles a translation unit, which may include files of these folders, and loads it.

    Libraries share nothing: the loader would else give them all one copy of a variable that the stand-ins declare.
    What the compiler checks is reported by the stand-ins themselves, so that nothing is linked for it.
    """
    checks = ["-fsanitize=alignment", "-fno-sanitize-recover=all"]
    options = ["-std=c++17", "-O1", "-w", "-fPIC", "-fno-gnu-unique", *checks]
    included = [f"-I{place}" for place in (*folders, STAND_INS)]
    text, compiled = library.with_suffix(".cpp"), library.with_suffix(".o")
    text.write_text(source)
    subprocess.run(["g++", *options, *included, "-c", str(text), "-o", str(compiled)], check=True)
    subprocess.run(["g++", "-shared", str(compiled), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
