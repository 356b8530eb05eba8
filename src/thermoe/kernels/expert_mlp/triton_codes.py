# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201 - Triton takes pointers and tensors, which have no Python types
"""Codes to operands of the matrix unit, in registers: a few integer operations for four weights at a time.

Integer codes of b bits become odd integers 2 c - (2**b - 1), exact in bf16 and f16, so that no zero point is left: byte
(c << 1) | 1 is put into the mantissa of a number whose last place counts 1, and that number is taken off again.
"""

import triton
import triton.language as tl


class _Constants:
    """What the assembly needs for one type of operand, each twice in a word."""

    def __init__(self, bf16: bool) -> None:
        self.kind = "bf16x2" if bf16 else "f16x2"
        self.magic = 0x43434343 if bf16 else 0x64646464  # high bytes of 128 and 1024: the last place counts 1
        self.one = 0x3F803F80 if bf16 else 0x3C003C00
        self.sixteen = 0x41804180 if bf16 else 0x4C004C00
        self.minus_middle2 = 0xC304C304 if bf16 else 0xE404E404  # -(128 or 1024) - 4
        self.minus_middle4 = 0xC310C310 if bf16 else 0xE410E410  # -(128 or 1024) - 16
        self.fp8_shift = 4 if bf16 else 1
        self.fp8_mask = 0x07F007F0 if bf16 else 0x3F803F80
        self.fp8_factor = 0x7B807B80 if bf16 else 0x5C005C00  # 2**120 or 2**8: the exponents' biases differ so


def _shift(target: str, source: str, left: int) -> str:
    return f"shl.b32 {target}, {source}, {left};" if left >= 0 else f"shr.b32 {target}, {source}, {-left};"


def _spread(constants: _Constants, minus: int) -> str:
    """Bytes of `a` to two words of numbers, less the middle, in `p` and `q`."""
    return f"""
        lop3.b32 a, a, m, 0x01010101, 0xEA;
        prmt.b32 p, a, {constants.magic}, 0x4140;
        prmt.b32 q, a, {constants.magic}, 0x4342;
        fma.rn.{constants.kind} p, p, one, minus{minus};
        fma.rn.{constants.kind} q, q, one, minus{minus};"""


def _code_text(bits: int, slot: int, bf16: bool) -> str:
    constants, first = _Constants(bf16), 1 - 2 * slot
    head = f"""{{
        .reg .b32 a, b, m, p, q, r, s, one, minus2, minus4, sixteen;
        mov.b32 one, {constants.one};
        mov.b32 minus2, {constants.minus_middle2};
        mov.b32 minus4, {constants.minus_middle4};
        mov.b32 sixteen, {constants.sixteen};"""
    if bits == 2:
        body = f"mov.b32 m, 0x06060606; {_shift('a', '$2', first)} {_spread(constants, 2)}"
    else:
        body = f"""mov.b32 m, 0x1E1E1E1E; {_shift("a", "$2", first + 2)} {_shift("b", "$3", first)}
        lop3.b32 a, a, b, 0x18181818, 0xE4; {_spread(constants, 4)}"""
    if bits == 8:
        body += f"""mov.b32 r, p; mov.b32 s, q; {_shift("a", "$4", 1 - 4 * (slot % 2))} {_spread(constants, 4)}
        fma.rn.{constants.kind} p, r, sixteen, p;
        fma.rn.{constants.kind} q, s, sixteen, q;"""
    return f"{head} {body} mov.b32 $0, p; mov.b32 $1, q; }}"


def _fp8_text(bf16: bool) -> str:
    constants = _Constants(bf16)
    text = f"{{ .reg .b32 t, u, f, z; mov.b32 z, 0x80008000; mov.b32 f, {constants.fp8_factor};"
    for out, selector in (("$0", 0x1404), ("$1", 0x3424)):
        text += f"""
        prmt.b32 t, $2, 0, {selector};
        shr.b32 u, t, {constants.fp8_shift};
        and.b32 u, u, {constants.fp8_mask};
        lop3.b32 t, u, t, 0x80008000, 0xF8;
        fma.rn.{constants.kind} {out}, t, f, z;"""
    return text + "}"


# Assembly that turns four bytes of each plane into two words of odd integers; e4m3 codes into two words of values;
# that multiplies two words. Keys are numbers, the only ones that Triton looks up.
_CODE_TEXTS = tl.constexpr(
    {
        100 * bf16 + 10 * bits + slot: _code_text(bits, slot, bool(bf16))
        for bf16 in range(2)
        for bits in (2, 4, 8)
        for slot in range(4)
    }
)
_FP8_TEXTS = tl.constexpr({bf16: _fp8_text(bool(bf16)) for bf16 in range(2)})
_SCALE_TEXTS = tl.constexpr(
    {
        bf16: f"{{ .reg .b32 z; mov.b32 z, 0x80008000; fma.rn.{_Constants(bool(bf16)).kind} $0, $1, $2, z; }}"
        for bf16 in range(2)
    }
)


@triton.jit
def odd_codes(high, middle, low, SLOT: tl.constexpr, BITS: tl.constexpr, OPERAND: tl.constexpr, ASM: tl.constexpr):
    """2 c - (2**BITS - 1) for the codes c of one slot, from bytes of the planes."""
    if ASM:
        text: tl.constexpr = _CODE_TEXTS[100 * (tl.bfloat16 == OPERAND) + 10 * BITS + SLOT]
        if BITS == 2:
            odd = tl.inline_asm_elementwise(text, "=r,=r,r", [high], OPERAND.value, True, 4)
        elif BITS == 4:
            odd = tl.inline_asm_elementwise(text, "=r,=r,r,r", [high, middle], OPERAND.value, True, 4)
        else:
            odd = tl.inline_asm_elementwise(text, "=r,=r,r,r,r", [high, middle, low], OPERAND.value, True, 4)
    else:
        code = (high.to(tl.int32) >> (2 * SLOT)) & 3
        if BITS >= 4:
            code = (code << 2) | ((middle.to(tl.int32) >> (2 * SLOT)) & 3)
        if BITS == 8:
            code = (code << 4) | ((low.to(tl.int32) >> (4 * (SLOT % 2))) & 15)
        odd = (2 * code - (2**BITS - 1)).to(tl.float32).to(OPERAND)
    return odd


@triton.jit
def fp8_values(codes, OPERAND: tl.constexpr, ASM: tl.constexpr):
    """Values of e4m3 codes given as bytes; exact, and on every GPU that has bf16."""
    if ASM:
        text: tl.constexpr = _FP8_TEXTS[1 * (tl.bfloat16 == OPERAND)]
        values = tl.inline_asm_elementwise(text, "=r,=r,r", [codes], OPERAND.value, True, 4)
    else:
        code = codes.to(tl.int32)
        as_float = ((code & 128) << 24) | ((code & 127) << 20)
        values = (as_float.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(OPERAND)  # 2**120
    return values


@triton.jit
def scaled(values, scale_M, OPERAND: tl.constexpr, ASM: tl.constexpr):
    """Operands times the float32 scales of their rows, both rounded to the operand's type."""
    if ASM:
        text: tl.constexpr = _SCALE_TEXTS[1 * (tl.bfloat16 == OPERAND)]
        product = tl.inline_asm_elementwise(
            text, "=r,r,r", [values, scale_M.to(OPERAND)[:, None]], OPERAND.value, True, 2
        )
    else:
        product = (values.to(tl.float32) * scale_M[:, None]).to(OPERAND)
    return product
