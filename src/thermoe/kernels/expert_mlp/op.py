"""The expert MLP as a torch custom op on flat tensors, so that torch.compile and CUDA graphs take it as one node.

Shapes: T tokens, K experts per token, N = T * K slots, E experts, D model width, I expert width.
"""

import torch
from torch import Tensor

from thermoe.kernels.dispatch import DispatchPlan
from thermoe.kernels.expert_mlp.configs import choose, shape_of
from thermoe.kernels.expert_mlp.reference import expert_mlp_reference
from thermoe.kernels.expert_mlp.weights import (
    Activation,
    DenseMatrices,
    ExpertWeights,
    Fp8Matrices,
    Matrices,
    PlaneMatrices,
)


@torch.library.custom_op("thermoe::expert_mlp", mutates_args=("out_TD",))
def expert_mlp_op(
    out_TD: Tensor,
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    fc1: list[Tensor],
    fc2: list[Tensor],
    extras: list[Tensor],
    layout: str,
) -> None:
    """Fill `out_TD`. `fc1`, `fc2`, `extras` and `layout` are those of `flatten`."""
    experts, plan = unflatten(fc1, fc2, extras, layout)
    if x_TD.is_cuda:
        _on_gpu(out_TD, x_TD, ids_TK, weights_TK, experts, plan)
    else:
        out_TD.copy_(expert_mlp_reference(x_TD, ids_TK, weights_TK, experts, dtype=torch.float32))


@expert_mlp_op.register_fake
def _(
    out_TD: Tensor,
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    fc1: list[Tensor],
    fc2: list[Tensor],
    extras: list[Tensor],
    layout: str,
) -> None:
    return None


def flatten(experts: ExpertWeights, plan: DispatchPlan | None) -> tuple[list[Tensor], list[Tensor], list[Tensor], str]:
    """Tensors of both matrices, of the rest, and the text that tells how to put them together."""
    extras = {"bias1": experts.bias1_EN, "bias2": experts.bias2_ED, "bits": experts.bits_E}
    if plan is not None:
        extras |= {"slot": plan.slot_N, "offsets": plan.offsets_E1}
    fc1, layout1 = _flatten(experts.fc1)
    fc2, layout2 = _flatten(experts.fc2)
    given = {name: tensor for name, tensor in extras.items() if tensor is not None}
    return fc1, fc2, list(given.values()), "|".join((experts.activation, layout1, layout2, ",".join(given)))


def unflatten(
    fc1: list[Tensor], fc2: list[Tensor], extras: list[Tensor], layout: str
) -> tuple[ExpertWeights, DispatchPlan | None]:
    """What `flatten` took apart."""
    activation, layout1, layout2, names = layout.split("|")
    given = dict(zip(names.split(","), extras, strict=bool(names)))
    experts = ExpertWeights(
        fc1=_unflatten(fc1, layout1),
        fc2=_unflatten(fc2, layout2),
        activation=Activation(activation),
        bias1_EN=given.get("bias1"),
        bias2_ED=given.get("bias2"),
        bits_E=given.get("bits"),
    )
    plan = DispatchPlan(slot_N=given["slot"], offsets_E1=given["offsets"]) if "slot" in given else None
    return experts, plan


def _flatten(matrices: Matrices) -> tuple[list[Tensor], str]:
    if isinstance(matrices, DenseMatrices):
        return [matrices.weight_ENC], "dense"
    if isinstance(matrices, Fp8Matrices):
        return [matrices.code_ENC, matrices.scale], "fp8"
    zeros = [] if matrices.zero_PEGN is None else [matrices.zero_PEGN]
    tensors = [*matrices.planes, matrices.scale_PEGN, *zeros]
    return tensors, f"planes,{len(matrices.planes)},{matrices.columns},{matrices.group_size}"


def _unflatten(tensors: list[Tensor], layout: str) -> Matrices:
    kind, *numbers = layout.split(",")
    if kind == "dense":
        return DenseMatrices(weight_ENC=tensors[0])
    if kind == "fp8":
        return Fp8Matrices(code_ENC=tensors[0], scale=tensors[1])
    num_planes, columns, group_size = map(int, numbers)
    scale_PEGN, *zeros = tensors[num_planes:]
    return PlaneMatrices(
        planes=tuple(tensors[:num_planes]),
        scale_PEGN=scale_PEGN,
        zero_PEGN=zeros[0] if zeros else None,
        columns=columns,
        group_size=group_size,
    )


def _on_gpu(
    out_TD: Tensor,
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights,
    plan: DispatchPlan | None,
) -> None:
    from thermoe.kernels.expert_mlp.triton_launch import expert_mlp_few, expert_mlp_many

    num_tokens, top_k = ids_TK.shape
    major, minor = torch.cuda.get_device_capability(x_TD.device)
    shape = shape_of(experts, num_tokens, top_k)
    config = choose(torch.cuda.get_device_name(x_TD.device), 10 * major + minor, shape)
    with torch.cuda.device(x_TD.device):
        if config.cuda and _run_cuda(out_TD, x_TD, ids_TK, weights_TK, experts):
            return
        if shape.few:
            expert_mlp_few(x_TD, ids_TK, weights_TK, experts, config, out_TD)
        elif not (config.grouped and _run_grouped(out_TD, x_TD, ids_TK, weights_TK, experts, plan, eight=config.eight)):
            expert_mlp_many(x_TD, ids_TK, weights_TK, experts, config, out_TD, plan)


def _run_cuda(out_TD: Tensor, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights) -> bool:
    """Whether the kernel built with nvcc took the call."""
    from thermoe.kernels.expert_mlp import cuda

    if not cuda.supports(experts, x_TD.shape[0], ids_TK.shape[1], x_TD.dtype):
        return False
    cuda.run(x_TD, ids_TK, weights_TK, experts, out_TD)
    return True


def _run_grouped(
    out_TD: Tensor,
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights,
    plan: DispatchPlan | None,
    *,
    eight: bool,
) -> bool:
    """Whether the CUDA C++ kernel for many tokens took the call."""
    from thermoe.kernels.expert_mlp import cuda_grouped

    changes_result = isinstance(experts.fc1, Fp8Matrices) and not eight
    if changes_result or not cuda_grouped.supports(experts, x_TD.shape[0], ids_TK.shape[1], x_TD.dtype):
        return False
    cuda_grouped.run(x_TD, ids_TK, weights_TK, experts, out_TD, plan=plan)
    return True
