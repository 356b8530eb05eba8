"""How the experts of one layer lie in memory: what every expert kernel reads.

Shapes: E experts, N rows (outputs) and C columns (inputs) of a matrix, C' = C rounded up to a multiple of 128,
Q pieces of a bit plane, G scale groups along the columns, P precisions of a nested bank, D model width, I expert width.
"""

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

CHUNK = 128  # columns whose codes are packed together
PIECE_BYTES = 32  # of a row of a bit plane, beside the same columns of the next row


class Activation(StrEnum):
    """What lies between the two matrices of an expert; the gated ones take gate rows first, then up rows."""

    SWIGLU = "swiglu"  # silu(gate) * up
    GEGLU = "geglu"  # gelu(gate, tanh form) * up
    SWIGLU_CLAMPED = "swiglu_clamped"  # GPT-OSS: (up within 7 of 0, + 1) * gate * sigmoid(1.702 gate), gate <= 7
    RELU = "relu"
    GELU = "gelu"  # tanh form
    SILU = "silu"

    @property
    def gated(self) -> bool:
        """Whether the first matrix has 2 I rows."""
        return self in (Activation.SWIGLU, Activation.GEGLU, Activation.SWIGLU_CLAMPED)


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseMatrices:
    """bf16, f16 or f32 weights, (E, N, C) contiguous."""

    weight_ENC: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, C)."""
        num_experts, rows, columns = self.weight_ENC.shape
        return num_experts, rows, columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Matrices:
    """e4m3 codes with scales: weight = code * scale.

    Attributes:
        code_ENC: (E, N, C) torch.float8_e4m3fn.
        scale: float32; (E, N) one for each row ("per channel"), or (E, ceil(N / 128), ceil(C / 128)) for blocks.
    """

    code_ENC: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, C)."""
        num_experts, rows, columns = self.code_ENC.shape
        return num_experts, rows, columns

    @property
    def blocks(self) -> bool:
        """Whether scales belong to blocks of 128 x 128 instead of rows."""
        return self.scale.ndim == 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneMatrices:
    """Integer codes in bit planes, most significant first: plain int2, int4 and int8, and the nested bank.

    The planes are 2, 2 and 4 bits wide; int2 has the first, int4 the first two, int8 and the bank all three.
    Reading the first p planes gives an unsigned code c of b = 2, 4, 8 bits, and

        weight = (c - (2**b - 1) / 2) * scale[p],       or (c - zero[p]) * scale[p] where zeros are given.

    Columns are packed in chunks of 128, padded at the end with codes of any value (kernels read 0 for x there). A
    chunk is cut into pieces of 32 bytes a row, and a piece of all rows lies together: what a kernel reads of some
    neighbouring rows is one stretch of memory, whole lines of the cache, however few columns it takes. In chunk k,
    columns 128 k + 32 s + j (slot s = 0..3, j = 0..31) lie
      - in a 2-bit plane in piece k, byte j, bits 2 s and 2 s + 1: (E, Q, N, 32) uint8, Q = C' / 128;
      - in the 4-bit plane in piece 2 k + s // 2, byte j, low nibble for even s, high nibble for odd s:
        (E, Q, N, 32) uint8, Q = C' / 64.
    So a slot is 32 neighbouring columns, and the bytes of a tile unpack by shifts alone. Scales of a group lie together
    for all rows, for the same reason.

    Attributes:
        planes: 1 to 3 tensors, contiguous.
        scale_PEGN: (P, E, G, N) float16; P = len(planes) for a nested bank, which can be read at every
            precision that its planes allow, and 1 for a plain format, read with all its planes.
        zero_PEGN: the same shape, float16, or None: the middle of the code range.
        columns: C, before padding.
        group_size: columns that share a scale: 32, 64, 128 or a multiple of 128.
    """

    planes: tuple[Tensor, ...]
    scale_PEGN: Tensor
    zero_PEGN: Tensor | None
    columns: int
    group_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, C)."""
        num_experts, _, rows, _ = self.planes[0].shape
        return num_experts, rows, self.columns

    @property
    def nested(self) -> bool:
        """Whether lower precisions have scales of their own."""
        return self.scale_PEGN.shape[0] > 1

    @property
    def max_bits(self) -> int:
        """Bits of a code when all planes are read: 2, 4 or 8."""
        return (2, 4, 8)[len(self.planes) - 1]


Matrices = DenseMatrices | Fp8Matrices | PlaneMatrices


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertWeights:
    """All experts of one layer: `fc2(activation(fc1(x) + bias1)) + bias2`.

    Attributes:
        fc1: (E, 2 I, D) for gated activations, gate rows first; (E, I, D) otherwise.
        fc2: (E, D, I).
        activation: between the two.
        bias1_EN, bias2_ED: (E, 2 I or I) and (E, D) float32, or None.
        bits_E: (E,) int32 in device memory: 2, 4 or 8, the precision at which each expert of a nested bank is read
            (another value reads the one below it, below 2 it is 2); None reads all planes. Live: a captured CUDA graph
            reads the values of its replay.
    """

    fc1: Matrices
    fc2: Matrices
    activation: Activation = Activation.SWIGLU
    bias1_EN: Tensor | None = None
    bias2_ED: Tensor | None = None
    bits_E: Tensor | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return self.fc1.shape[0]

    @property
    def d_model(self) -> int:
        """D."""
        return self.fc1.shape[2]

    @property
    def inter_size(self) -> int:
        """I."""
        return self.fc2.shape[2]
