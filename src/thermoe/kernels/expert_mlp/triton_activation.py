# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - Triton takes pointers and tensors, which have no Python types
"""What lies between the two products of an expert, on float32 values in registers."""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _gelu(z):
    """The tanh form: z * (1 + tanh(a)) / 2 = z * sigmoid(2 a)."""
    return z * _sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))


@triton.jit
def activate(gate, up, ACTIVATION: tl.constexpr):
    """The activation of that name; those that are not gated read `gate` alone."""
    if ACTIVATION == "swiglu":
        hidden = gate * _sigmoid(gate) * up
    elif ACTIVATION == "geglu":
        hidden = _gelu(gate) * up
    elif ACTIVATION == "swiglu_clamped":
        gate = tl.minimum(gate, 7.0)
        up = tl.minimum(tl.maximum(up, -7.0), 7.0)
        hidden = (up + 1.0) * gate * _sigmoid(1.702 * gate)
    elif ACTIVATION == "relu":
        hidden = tl.maximum(gate, 0.0)
    elif ACTIVATION == "gelu":
        hidden = _gelu(gate)
    else:
        hidden = gate * _sigmoid(gate)
    return hidden
