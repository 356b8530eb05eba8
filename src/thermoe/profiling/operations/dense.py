"""Dense operations: matrix products, copies, element-wise sums, norms, attention over a cache.

Shapes: m rows, k and n columns; B sequences, H query heads, G key heads, L positions of the cache, W width of a head.
A product (m, n, k) is a case of m rows with hidden_size k and inter_size n. Attention is a case of B rows with
hidden_size H W, inter_size G W and context L.
"""

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from thermoe.errors import ConfigError
from thermoe.profiling.case import Case
from thermoe.profiling.draw import Draw
from thermoe.profiling.operations.bench import (
    CHECKED_ROWS,
    FLOATS,
    Operation,
    Setup,
    Workbench,
    activation_dtype,
    relative_error,
)

HEAD_WIDTH = 128
EPSILON = 1e-6


class Gemm:
    """(m, k) by (k, n), in the dtype of both."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        draw = Draw(setup.device, activation_dtype(case))
        self._x = draw.normal(case.routed_rows, case.hidden_size)
        copies = setup.copies(_weight_bytes(case))
        self._weights = [draw.weights(case.inter_size, case.hidden_size) for _ in range(copies)]

    def run(self, step: int) -> Tensor:
        """Multiply once."""
        return self._x @ self._weights[step % len(self._weights)].T

    def rel_error(self) -> float:
        """A sample of rows against float64."""
        return relative_error(self.run(0)[:CHECKED_ROWS], self._x[:CHECKED_ROWS].double() @ self._weights[0].double().T)


class Fp8Gemm:
    """The same with e4m3 operands and one scale for each."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        draw = Draw(setup.device, torch.bfloat16)
        self._x = draw.normal(case.routed_rows, case.hidden_size).to(torch.float8_e4m3fn)
        copies = setup.copies(_weight_bytes(case))
        self._weights = [draw.normal(case.inter_size, case.hidden_size).to(torch.float8_e4m3fn) for _ in range(copies)]
        self._one = torch.ones((), device=setup.device)
        self._scale = torch.full((), case.hidden_size**-0.5, device=setup.device)

    def run(self, step: int) -> Tensor:
        """Multiply once."""
        weight = self._weights[step % len(self._weights)].T
        return torch._scaled_mm(self._x, weight, scale_a=self._one, scale_b=self._scale, out_dtype=torch.bfloat16)

    def rel_error(self) -> float:
        """A sample of rows against float64 on the rounded values."""
        want = self._x[:CHECKED_ROWS].double() @ self._weights[0].double().T * float(self._scale)
        return relative_error(self.run(0)[:CHECKED_ROWS], want)


class Copy:
    """Copy of a (tokens, D) matrix: the memory bandwidth beside which all else is read."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        self._sources = _matrices(case, setup, _stream_bytes(case))
        self._targets = [torch.empty_like(source) for source in self._sources]

    def run(self, step: int) -> Tensor:
        """Copy once."""
        place = step % len(self._sources)
        return self._targets[place].copy_(self._sources[place])

    def rel_error(self) -> float:
        """Exact, or it is broken."""
        return 0.0 if torch.equal(self.run(0), self._sources[0]) else float("inf")


class Elementwise:
    """x + y of two (tokens, D) matrices, as a residual is added."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        self._sources = _matrices(case, setup, 1.5 * _stream_bytes(case))
        self._others = [source.flip(0) for source in self._sources]

    def run(self, step: int) -> Tensor:
        """Add once."""
        place = step % len(self._sources)
        return self._sources[place] + self._others[place]

    def rel_error(self) -> float:
        """Against float64."""
        return relative_error(self.run(0), self._sources[0].double() + self._others[0].double())


class Norm:
    """Root-mean-square norm of the rows of a (tokens, D) matrix with a weight for each column."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        self._sources = _matrices(case, setup, _stream_bytes(case))
        self._weight = Draw(setup.device, activation_dtype(case), 1).normal(case.hidden_size)

    def run(self, step: int) -> Tensor:
        """Norm once."""
        source = self._sources[step % len(self._sources)]
        return nn_functional.rms_norm(source, self._weight.shape, self._weight, EPSILON)

    def rel_error(self) -> float:
        """Against the formula in float64."""
        x = self._sources[0].double()
        return relative_error(
            self.run(0), x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * self._weight.double()
        )


class AttentionDecode:
    """One new position of B sequences against their caches; query heads that share a key head read it once."""

    def __init__(self, case: Case, setup: Setup) -> None:
        if case.hidden_size % case.inter_size or case.inter_size % HEAD_WIDTH:
            raise ConfigError(
                f"{case}: hidden_size must be a multiple of inter_size, and that one of {HEAD_WIDTH}, to form heads"
            )
        self.skew = 1.0
        draw = Draw(setup.device, activation_dtype(case))
        key_heads, shared = case.inter_size // HEAD_WIDTH, case.hidden_size // case.inter_size
        self._query = draw.normal(case.routed_rows, key_heads, shared, HEAD_WIDTH)
        shape = (case.routed_rows, key_heads, case.context, HEAD_WIDTH)
        self._caches = [(draw.normal(*shape), draw.normal(*shape)) for _ in range(setup.copies(_cache_bytes(case)))]

    def run(self, step: int) -> Tensor:
        """(B, G, H / G, W)."""
        keys, values = self._caches[step % len(self._caches)]
        return nn_functional.scaled_dot_product_attention(self._query, keys, values)

    def rel_error(self) -> float:
        """Of the first sequence, against float64."""
        keys, values = (part[0].double() for part in self._caches[0])
        scores = self._query[0].double() @ keys.transpose(-1, -2) * HEAD_WIDTH**-0.5
        return relative_error(self.run(0)[0], scores.softmax(dim=-1) @ values)


def _build_gemm(case: Case, setup: Setup) -> Workbench:
    return Fp8Gemm(case, setup) if case.dtype == "fp8" else Gemm(case, setup)


def _matrices(case: Case, setup: Setup, each_bytes: float) -> list[Tensor]:
    draw = Draw(setup.device, activation_dtype(case))
    return [draw.normal(case.tokens, case.hidden_size) for _ in range(setup.copies(each_bytes))]


def _weight_bytes(c: Case) -> float:
    return c.hidden_size * c.inter_size * c.bits / 8.0


def _gemm_bytes(c: Case) -> float:
    return _weight_bytes(c) + c.routed_rows * (c.hidden_size * c.bits / 8.0 + c.inter_size * c.element_bytes)


def _stream_bytes(c: Case) -> float:
    return 2.0 * c.tokens * c.hidden_size * c.element_bytes


def _cache_bytes(c: Case) -> float:
    return 2.0 * c.routed_rows * c.inter_size * c.context * c.element_bytes


DENSE_OPERATIONS = {
    "gemm": Operation(
        build=_build_gemm,
        implementations=("torch",),
        dtypes=(*FLOATS, "fp8"),
        flops=lambda c: 2.0 * c.routed_rows * c.hidden_size * c.inter_size,
        bytes_moved=_gemm_bytes,
        step_bytes=_weight_bytes,
    ),
    "copy": Operation(
        build=Copy,
        implementations=("torch",),
        dtypes=FLOATS,
        flops=lambda c: 0.0,
        bytes_moved=_stream_bytes,
        step_bytes=_stream_bytes,
    ),
    "elementwise": Operation(
        build=Elementwise,
        implementations=("torch",),
        dtypes=FLOATS,
        flops=lambda c: float(c.tokens * c.hidden_size),
        bytes_moved=lambda c: 1.5 * _stream_bytes(c),
        step_bytes=lambda c: 1.5 * _stream_bytes(c),
    ),
    "norm": Operation(
        build=Norm,
        implementations=("torch",),
        dtypes=FLOATS,
        flops=lambda c: 4.0 * c.tokens * c.hidden_size,
        bytes_moved=_stream_bytes,
        step_bytes=_stream_bytes,
    ),
    "attention_decode": Operation(
        build=AttentionDecode,
        implementations=("torch",),
        dtypes=FLOATS,
        flops=lambda c: 4.0 * c.routed_rows * c.hidden_size * c.context,
        bytes_moved=lambda c: _cache_bytes(c) + 2.0 * c.routed_rows * c.hidden_size * c.element_bytes,
        step_bytes=_cache_bytes,
    ),
}
