"""How the copy engine sees the weights of the decode kernel: every copy brings a job's 32 rows.

They are 16 of each of two halves in the first matrix (gate rows and the up rows they meet) and 32 neighbours in the
second.
Shapes: E experts, N rows, Q pieces of a bit plane, G scale groups, P precisions.
"""

from dataclasses import dataclass

from torch import Tensor

from thermoe.kernels.expert_mlp.weights import CHUNK, Fp8Matrices, Matrices, PlaneMatrices

ROWS = 32
PLANE_COLUMNS = 256  # of a job in bit planes
_SWIZZLED_BYTES = 128  # of a row in a copy of bytes
_MAX_ELEMENT_BYTES = 8


@dataclass(frozen=True, slots=True)
class Boxes:
    """A tensor of four dimensions, innermost first, and what one copy takes of it.

    Attributes:
        element_bytes: 1, 2 or 8.
        sizes: elements along each dimension; the second is the halves of an expert's rows, or their rows in `bytes_of`.
        pitches: bytes from one to the next along the outer three.
        box: elements that a copy takes along each.
        swizzled: whether 16-byte units of 128 bytes are exchanged by the number of their row.
    """

    element_bytes: int
    sizes: tuple[int, int, int, int]
    pitches: tuple[int, int, int]
    box: tuple[int, int, int, int]
    swizzled: bool


@dataclass(frozen=True, slots=True)
class Described:
    """The maps of one matrix: of its only tensor or its planes, and of the scales and zeros of planes."""

    weights: tuple[tuple[Tensor, Boxes], ...]
    scale: tuple[Tensor, Boxes] | None = None
    zero: tuple[Tensor, Boxes] | None = None


def described(matrices: Matrices, which: int) -> Described:
    """All that a launch copies of matrix 0 or 1."""
    if isinstance(matrices, PlaneMatrices):
        bits = (2, 2, 4)
        planes = [
            (plane, pieces_of(tuple(plane.shape), 1, which, PLANE_COLUMNS // CHUNK * width // 2))
            for plane, width in zip(matrices.planes, bits, strict=False)
        ]
        groups = PLANE_COLUMNS // matrices.group_size
        scale, zero = (
            None if values is None else (values, pieces_of(_by_expert(values), values.element_size(), which, groups))
            for values in (matrices.scale_PEGN, matrices.zero_PEGN)
        )
        return Described(tuple(planes), scale, zero)
    tensor = matrices.code_ENC if isinstance(matrices, Fp8Matrices) else matrices.weight_ENC
    return Described(((tensor, bytes_of(tensor, which)),))


def bytes_of(matrix: Tensor, which: int) -> Boxes:
    """Rows of bytes, (E, N, columns): 128 of each at a time."""
    experts, rows, halves = len(matrix), matrix.shape[1] // (2 - which), 2 - which
    row_bytes = matrix.shape[2] * matrix.element_size()
    pitches = (row_bytes, rows * row_bytes, halves * rows * row_bytes)
    box = (_SWIZZLED_BYTES, ROWS // halves, halves, 1)
    return Boxes(1, (row_bytes, rows, halves, experts), pitches, box, True)


def _by_expert(values_PEGN: Tensor) -> tuple[int, ...]:
    """Shape of scales as `pieces_of` takes it: the precisions one after another, an element a row."""
    precisions, experts, groups, rows = values_PEGN.shape
    return precisions * experts, groups, rows, 1


def pieces_of(shape: tuple[int, ...], number_bytes: int, which: int, at_once: int) -> Boxes:
    """Pieces of a plane or groups of scales, (E or P E, Q or G, N, numbers of a row) of some bytes: some at a time."""
    experts, count, all_rows, numbers = shape
    halves, row_bytes = 2 - which, numbers * number_bytes
    element_bytes = min(_MAX_ELEMENT_BYTES, row_bytes)
    row, rows = row_bytes // element_bytes, all_rows // halves
    pitches = (rows * row_bytes, all_rows * row_bytes, count * all_rows * row_bytes)
    box = (row * ROWS // halves, halves, at_once, 1)
    return Boxes(element_bytes, (row * rows, halves, count, experts), pitches, box, False)


def tensors_of(matrices: Matrices) -> tuple[Tensor, ...]:
    """The tensors whose rows the kernel streams: 1, or the planes."""
    if isinstance(matrices, PlaneMatrices):
        return matrices.planes
    return (matrices.code_ENC if isinstance(matrices, Fp8Matrices) else matrices.weight_ENC,)
