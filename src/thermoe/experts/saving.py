"""Expert banks in safetensors files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from thermoe.errors import ConfigError, DataError
from thermoe.experts.bank import ExpertBank
from thermoe.kernels.expert_mlp import Activation, PlaneMatrices

_FORMAT = "thermoe.expert_bank"
_VERSION = 2  # planes in pieces, scales by groups; 1: both by rows


def save_bank(bank: ExpertBank, path: Path) -> None:
    """Writes planes, scales, biases, kept experts and present precisions to one file.

    Raises:
        DataError: the file cannot be written.
    """
    described = {
        "format": _FORMAT,
        "version": _VERSION,
        "activation": str(bank.activation),
        "group_size": bank.group_size,
        "columns": {name: bank.matrices(name).columns for name in ("fc1", "fc2")},
    }
    tensors = {name: buffer.contiguous() for name, buffer in bank.state_dict().items()}
    try:
        save_file(tensors, str(path), metadata={_FORMAT: json.dumps(described)})
    except (SafetensorError, OSError) as err:
        raise DataError(f"expert bank {path} cannot be written ({err}): check folder and disk") from err


def load_bank(path: Path, *, device: torch.device | str = "cpu") -> ExpertBank:
    """The bank that `save_bank` wrote.

    Raises:
        DataError: the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            described = _described(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"expert bank {path} does not exist: check the path") from None
    except (SafetensorError, OSError) as err:
        raise DataError(f"expert bank {path} cannot be read ({err}): write it again") from err
    try:
        return _assembled(described, tensors)
    except KeyError as err:
        raise DataError(f"expert bank {path} lacks {err}: write it again") from None
    except (ConfigError, ValueError, RuntimeError) as err:
        raise DataError(f"expert bank {path} does not hold together ({err}): write it again") from err


def _described(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    """What is said beside the tensors."""
    try:
        described = json.loads((metadata or {}).get(_FORMAT, "{}"))
    except json.JSONDecodeError:
        described = None
    if not isinstance(described, dict) or "version" not in described:
        raise DataError(f"{path} is no expert bank of version {_VERSION}: write it with save_bank")
    if described["version"] != _VERSION:
        raise DataError(
            f"{path} is an expert bank of version {described['version']}, needed {_VERSION}: write it with save_bank "
            "from the weights that it was made of"
        )
    return described


def _assembled(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ExpertBank:
    columns, group_size = described["columns"], described["group_size"]
    if not isinstance(columns, dict) or not all(isinstance(n, int) for n in (group_size, *columns.values())):
        raise ValueError(f"columns {columns} in groups of {group_size}")
    fc1, fc2 = (
        PlaneMatrices(
            planes=tuple(tensors[f"{name}_plane{place}"] for place in range(3)),
            scale_PEGN=tensors[f"{name}_scale"],
            zero_PEGN=None,
            columns=columns[name],
            group_size=group_size,
        )
        for name in ("fc1", "fc2")
    )
    bank = ExpertBank(
        fc1,
        fc2,
        activation=Activation(str(described["activation"])),
        bias1_EN=tensors.get("bias1"),
        bias2_ED=tensors.get("bias2"),
    )
    for name in ("fc1", "fc2"):
        bank.set_scales(name, tensors[f"{name}_scale"].transpose(2, 3))
    _keep(bank, tensors)
    bits_E = tensors["bits_E"]
    bank.set_bits(bits_E.tolist() if bits_E.ndim else [])
    return bank


def _keep(bank: ExpertBank, tensors: dict[str, torch.Tensor]) -> None:
    """Experts in bf16 beside the bank, and which they are."""
    slot_E = tensors["kept_slot_E"]
    slots = sorted(slot for slot in slot_E.flatten().tolist() if slot >= 0)
    if slot_E.shape != bank.kept_slot_E.shape or slots != list(range(len(slots))):
        raise ValueError(f"kept experts at {slot_E.tolist()} for {bank.num_experts} experts")
    if not slots:
        return
    for name in ("fc1", "fc2"):
        held = tensors[f"kept_{name}"]
        wanted = (len(slots), *bank.matrices(name).shape[1:])
        if tuple(held.shape) != wanted or held.dtype != torch.bfloat16:
            raise ValueError(f"kept_{name} {tuple(held.shape)} of {held.dtype}, needed {wanted} of bfloat16")
    bank.kept_slot_E.copy_(slot_E)
    bank.kept_fc1, bank.kept_fc2 = tensors["kept_fc1"], tensors["kept_fc2"]
