"""The decode kernel's machine code for one weight format."""

from pathlib import Path

from thermoe.kernels.cuda_build import compile_source

SOURCES = Path(__file__).parent


def cubin(format_name: str, *, warps: int, architecture: str) -> bytes:
    """Machine code of the kernel, built on the first call of a user and kept.

    Args:
        format_name: C++ type of the weights (geometry.py).
        warps: that multiply, of each block: 8 or 12.
        architecture: `sm_90`; the kernel uses what this one has alone.

    Raises:
        CudaUnavailableError: no compiler was found, or it refused the source.
    """
    main = f'#define THERMOE_FORMAT {format_name}\n#define THERMOE_WARPS {warps}\n#include "decode.cu"\n'
    number = int(architecture.removeprefix("sm_"))
    return compile_source(main, "thermoe_decode.cu", divmod(number, 10), include=SOURCES, specific=True)
