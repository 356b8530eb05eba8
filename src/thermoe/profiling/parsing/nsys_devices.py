"""Which physical GPU a CUDA ordinal of a process means in an nsys export."""

from typing import Any

import numpy as np
import pandas as pd

from thermoe.profiling.parsing.devices import normal_bus, normal_uuid
from thermoe.profiling.parsing.sqlite_file import MISSING, SqliteFile
from thermoe.types import IntArray


def device_columns(file: SqliteFile, global_pid: IntArray, device_id: IntArray) -> dict[str, Any]:
    """UUID, bus and nsys id of the GPU of every row (N,); `None` and `MISSING` where the export does not tell."""
    pairs = pd.MultiIndex.from_arrays([(global_pid >> 24) & 0xFFFFFF, device_id])
    codes, unique = pd.factorize(pairs)
    gpus = _gpus(file)
    ordinals = _ordinals(file)
    chosen = [_gpu_of(int(pid), int(ordinal), gpus, ordinals) for pid, ordinal in unique]
    found = [(*_identity(gpu, gpus, ordinals), gpu) for gpu in chosen]
    uuids, buses = (np.array([row[i] for row in found], dtype=object) for i in (0, 1))
    ids = np.array([MISSING if gpu is None else gpu for gpu in chosen], dtype=np.int64)
    return {"device_uuid": uuids[codes], "device_bus": buses[codes], "gpu_id": ids[codes]}


def _gpus(file: SqliteFile) -> list[dict[str, Any]]:
    table = file.find("TARGET_INFO_GPU")
    rows = file.rows(table, ["id", "busLocation", "uuid", "cuDevice"]) if table else []
    return [row for row in rows if _is_id(row["id"])]


def _ordinals(file: SqliteFile) -> list[dict[str, Any]]:
    table = file.find("TARGET_INFO_CUDA_DEVICE")
    rows = file.rows(table, ["gpuId", "cudaId", "pid", "uuid"]) if table else []
    return [row for row in rows if _is_id(row["gpuId"])]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**31


def _gpu_of(pid: int, ordinal: int, gpus: list[dict[str, Any]], ordinals: list[dict[str, Any]]) -> int | None:
    """nsys id of the GPU: by the process's own list, else by what all processes agree on, else by CUDA's order."""
    own = {row["gpuId"] for row in ordinals if row["cudaId"] == ordinal and row["pid"] == pid}
    agreed = {row["gpuId"] for row in ordinals if row["cudaId"] == ordinal}
    by_order = {row["id"] for row in gpus if row["cuDevice"] == ordinal} if not ordinals else set()
    for candidates in (own, agreed, by_order):
        if len(candidates) == 1:
            return int(candidates.pop())
    return None


def _identity(
    gpu: int | None, gpus: list[dict[str, Any]], ordinals: list[dict[str, Any]]
) -> tuple[str | None, str | None]:
    if gpu is None:
        return None, None
    row = next((row for row in gpus if row["id"] == gpu), {})
    uuids = [row.get("uuid"), *(other["uuid"] for other in ordinals if other["gpuId"] == gpu)]
    return next(filter(None, map(normal_uuid, uuids)), None), normal_bus(row.get("busLocation"))
