"""Operations on expert weights: the fused MLP in every format, its two products, activation, dequantising.

Shapes: T tokens, R routed rows, E experts, D model width, I expert width.
"""

import torch
from torch import Tensor

from thermoe.kernels.expert_mlp import DenseMatrices, Matrices, dequantize, expert_mlp
from thermoe.profiling.case import Case
from thermoe.profiling.draw import Draw
from thermoe.profiling.operations.bench import (
    CHECKED_ROWS,
    FLOATS,
    PACKED,
    Operation,
    Setup,
    Workbench,
    activation_dtype,
    relative_error,
)
from thermoe.profiling.operations.routed import Routed, whole_tokens
from thermoe.profiling.operations.torch_moe import LINEARS, expert_mlp_reference, swiglu
from thermoe.profiling.random_matrices import one_expert, some_experts
from thermoe.types import MoEShape


class FusedMlp:
    """Thermoe's kernel, its plan and the sum over a token's experts included: (T, D) to (T, D)."""

    def __init__(self, case: Case, setup: Setup) -> None:
        whole_tokens(case)
        self._routed = Routed(case, setup, weights=True)
        self.skew = self._routed.skew
        self._ids_STK, self._gates_TK = self._routed.slots(), self._routed.gates()
        self._x_TD = Draw(setup.device, activation_dtype(case)).normal(case.tokens, case.hidden_size)
        self._out_TD = torch.full_like(self._x_TD, float("nan"))

    def run(self, step: int) -> Tensor:
        """One layer."""
        ids_TK, experts = self._ids_STK[step], self._routed.layer(step)
        return expert_mlp(self._x_TD, ids_TK, self._gates_TK, experts, out_TD=self._out_TD)

    def rel_error(self) -> float:
        """A few tokens against float64 on the weights that codes and scales stand for."""
        got_TD, experts = self.run(0), self._routed.layer(0)
        tokens = torch.linspace(0, len(got_TD) - 1, min(CHECKED_ROWS // 2, len(got_TD))).long().tolist()
        want = []
        for token in tokens:
            x_1D = self._x_TD[token : token + 1].double()
            total = torch.zeros_like(x_1D)
            for slot, expert in enumerate(self._ids_STK[0, token].tolist()):
                gate_up, down = (one_expert(m, expert, experts.bits_E) for m in (experts.fc1, experts.fc2))
                total = total + self._gates_TK[token, slot].double() * (swiglu(x_1D @ gate_up.T) @ down.T)
            want.append(total)
        return relative_error(got_TD[tokens], torch.cat(want))


class _OnRows:
    """Operations of torch on rows that are already in expert order."""

    def __init__(self, case: Case, setup: Setup, width: int) -> None:
        self._routed = Routed(case, setup, weights=True)
        self.skew = self._routed.skew
        self._linear = LINEARS[case.impl]
        self._x = self._routed.rows(width)
        self._ids_SR, self._offs_SE = self._routed.in_expert_order()

    def _weights(self, step: int) -> tuple[Tensor, Tensor]:
        layer = self._routed.layer(step)
        assert isinstance(layer.fc1, DenseMatrices)
        assert isinstance(layer.fc2, DenseMatrices)
        return layer.fc1.weight_ENC, layer.fc2.weight_ENC

    def _sample(self) -> Tensor:
        return torch.linspace(0, len(self._x) - 1, min(CHECKED_ROWS, len(self._x)), device=self._x.device).long()


class TorchMlp(_OnRows):
    """Product, SwiGLU, product in torch: (R, D) to (R, D)."""

    def __init__(self, case: Case, setup: Setup) -> None:
        super().__init__(case, setup, case.hidden_size)

    def run(self, step: int) -> Tensor:
        """One layer."""
        (fc1, fc2), ids_R, offs_E = self._weights(step), self._ids_SR[step], self._offs_SE[step]
        return self._linear(swiglu(self._linear(self._x, fc1, ids_R, offs_E)), fc2, ids_R, offs_E)

    def rel_error(self) -> float:
        """A sample of rows against float64."""
        sample, (fc1, fc2) = self._sample(), self._weights(0)
        want_RD = expert_mlp_reference(self._x[sample], self._ids_SR[0][sample], fc1, fc2)
        return relative_error(self.run(0)[sample], want_RD)


class Linear(_OnRows):
    """One of the two products: "linear_fc1" (gate and up) or "linear_fc2" (down)."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self._second = case.op == "linear_fc2"
        super().__init__(case, setup, case.inter_size if self._second else case.hidden_size)

    def run(self, step: int) -> Tensor:
        """One product."""
        weight = self._weights(step)[self._second]
        return self._linear(self._x, weight, self._ids_SR[step], self._offs_SE[step])

    def rel_error(self) -> float:
        """A sample of rows against float64."""
        sample, weight = self._sample(), self._weights(0)[self._second]
        pairs = zip(self._x[sample], self._ids_SR[0][sample].tolist(), strict=True)
        return relative_error(self.run(0)[sample], torch.stack([weight[e].double() @ x.double() for x, e in pairs]))


class Activation:
    """silu(gate) * up on (R, 2I)."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        draw = Draw(setup.device, activation_dtype(case))
        copies = setup.copies(_activation_bytes(case))
        self._h = [draw.normal(case.routed_rows, 2 * case.inter_size) for _ in range(copies)]

    def run(self, step: int) -> Tensor:
        """Once."""
        return swiglu(self._h[step % len(self._h)])

    def rel_error(self) -> float:
        """All rows against float64."""
        return relative_error(self.run(0), swiglu(self._h[0].double()))


class Dequantize:
    """Codes of the touched experts, which lie side by side, to bf16 weights."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        routed = Routed(case, setup, weights=True)
        self._parts: list[tuple[Matrices, Matrices, Tensor | None]] = []
        for step in range(setup.steps):
            layer, count = routed.layer(step), case.distinct_experts
            first = (step // len(routed.layers) * count) % (case.num_experts - count + 1)
            bits = None if layer.bits_E is None else layer.bits_E[first : first + count]
            self._parts.append((some_experts(layer.fc1, first, count), some_experts(layer.fc2, first, count), bits))

    def run(self, step: int) -> Tensor:
        """Both matrices of each touched expert; returns the second."""
        fc1, fc2, bits_E = self._parts[step]
        dequantize(fc1, bits_E, dtype=torch.bfloat16)
        return dequantize(fc2, bits_E, dtype=torch.bfloat16)

    def rel_error(self) -> float:
        """One expert against float64."""
        _, fc2, bits_E = self._parts[0]
        return relative_error(self.run(0)[0], one_expert(fc2, 0, bits_E))


def _build_mlp(case: Case, setup: Setup) -> Workbench:
    return FusedMlp(case, setup) if case.impl == "thermoe" else TorchMlp(case, setup)


def _shape(c: Case) -> MoEShape:
    return MoEShape(
        num_layers=1, hidden_size=c.hidden_size, inter_size=c.inter_size, num_experts=c.num_experts, top_k=c.top_k
    )


def _matrix_bytes(c: Case, rows: int, columns: int) -> float:
    return c.distinct_experts * (rows * columns * c.bits / 8.0 + c.scale_bytes(rows, columns))


def _fc1_bytes(c: Case) -> float:
    return _matrix_bytes(c, 2 * c.inter_size, c.hidden_size)


def _fc2_bytes(c: Case) -> float:
    return _matrix_bytes(c, c.hidden_size, c.inter_size)


def _touched_bytes(c: Case) -> float:
    return c.distinct_experts * c.expert_bytes


def _activation_bytes(c: Case) -> float:
    return 3.0 * c.routed_rows * c.inter_size * c.element_bytes


EXPERT_OPERATIONS = {
    "expert_mlp": Operation(
        build=_build_mlp,
        implementations=("thermoe", *LINEARS),
        dtypes=(*FLOATS, *PACKED),
        flops=lambda c: c.routed_rows * _shape(c).expert_flops_per_row(),
        bytes_moved=lambda c: _touched_bytes(c) + 2.0 * c.routed_rows * c.hidden_size * c.element_bytes,
        step_bytes=_touched_bytes,
    ),
    "linear_fc1": Operation(
        build=Linear,
        implementations=tuple(LINEARS),
        dtypes=FLOATS,
        flops=lambda c: 4.0 * c.routed_rows * c.hidden_size * c.inter_size,
        bytes_moved=lambda c: _fc1_bytes(c) + c.routed_rows * (c.hidden_size + 2.0 * c.inter_size) * c.element_bytes,
        step_bytes=_fc1_bytes,
    ),
    "linear_fc2": Operation(
        build=Linear,
        implementations=tuple(LINEARS),
        dtypes=FLOATS,
        flops=lambda c: 2.0 * c.routed_rows * c.hidden_size * c.inter_size,
        bytes_moved=lambda c: _fc2_bytes(c) + c.routed_rows * (c.hidden_size + c.inter_size) * float(c.element_bytes),
        step_bytes=_fc2_bytes,
    ),
    "activation": Operation(
        build=Activation,
        implementations=("torch",),
        dtypes=FLOATS,
        flops=lambda c: 5.0 * c.routed_rows * c.inter_size,
        bytes_moved=_activation_bytes,
        step_bytes=_activation_bytes,
    ),
    "dequant_unpack_op": Operation(
        build=Dequantize,
        implementations=("torch",),
        dtypes=PACKED,
        flops=lambda c: 6.0 * c.distinct_experts * c.hidden_size * c.inter_size,
        bytes_moved=lambda c: _touched_bytes(c) + 6.0 * c.distinct_experts * c.hidden_size * c.inter_size,
        step_bytes=_touched_bytes,
    ),
}
