"""Expert banks in safetensors files."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from thermoe.errors import DataError
from thermoe.experts.bank import ExpertBank
from thermoe.kernels.expert_mlp import Activation, PlaneMatrices

_FORMAT = "thermoe.expert_bank"
_VERSION = 1


def save_bank(bank: ExpertBank, path: Path) -> None:
    """Writes planes, scales, biases, kept experts and present precisions to one file."""
    described = {
        "format": _FORMAT,
        "version": _VERSION,
        "activation": str(bank.activation),
        "group_size": bank.group_size,
        "columns": {name: bank.matrices(name).columns for name in ("fc1", "fc2")},
    }
    tensors = {name: buffer.contiguous() for name, buffer in bank.state_dict().items()}
    save_file(tensors, str(path), metadata={_FORMAT: json.dumps(described)})


def load_bank(path: Path, *, device: torch.device | str = "cpu") -> ExpertBank:
    """The bank that `save_bank` wrote.

    Raises:
        DataError: the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            described = json.loads((file.metadata() or {}).get(_FORMAT, "{}"))
            if described.get("version") != _VERSION:
                raise DataError(f"{path} is no expert bank of version {_VERSION}: write it with save_bank")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"expert bank {path} does not exist: check the path") from None
    except (SafetensorError, OSError) as err:
        raise DataError(f"expert bank {path} cannot be read ({err}): write it again") from err
    try:
        return _assembled(described, tensors)
    except KeyError as err:
        raise DataError(f"expert bank {path} lacks {err}: write it again") from None


def _assembled(described: dict[str, object], tensors: dict[str, torch.Tensor]) -> ExpertBank:
    columns, group_size = described["columns"], described["group_size"]
    assert isinstance(columns, dict)
    assert isinstance(group_size, int)
    fc1, fc2 = (
        PlaneMatrices(
            planes=tuple(tensors[f"{name}_plane{place}"] for place in range(3)),
            scale_PENG=tensors[f"{name}_scale"],
            zero_PENG=None,
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
    for name in ("bits_E", "kept_slot_E"):
        bank.get_buffer(name).copy_(tensors[name])
    if "kept_fc1" in tensors:
        bank.kept_fc1, bank.kept_fc2 = tensors["kept_fc1"], tensors["kept_fc2"]
    return bank
