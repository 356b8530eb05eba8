"""Short numbers that stand for cases and for shapes, so that a model knows which it was fitted to. B cases."""

import base64
import binascii
from hashlib import blake2b

import numpy as np

from thermoe.cost.cases import Cases
from thermoe.errors import DataError
from thermoe.types import IntArray

_BYTES = 5  # of 77,000 cases none is taken for another of 50,000 but once in 250 times


def cases_and_shapes(cases: Cases) -> IntArray:
    """Numbers of each case and of its shape (2, B): the same when it is measured again, on whatever device."""
    columns = (cases.tokens, cases.context, cases.skew, cases.loads.rows, cases.loads.distinct)
    sizes, counts = cases.sizes(), np.stack(columns, axis=1)
    found = np.empty((2, len(cases)), dtype=np.int64)
    for i, (impl, dtype) in enumerate(zip(cases.impl, cases.dtype, strict=True)):
        shape = cases.op.encode() + b" " + sizes[i].tobytes()
        found[:, i] = _number(f"{impl}/{dtype}/".encode() + shape + counts[i].tobytes()), _number(shape)
    return found


def _number(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=_BYTES).digest(), "little")


def as_text(numbers: IntArray) -> str:
    """Distinct numbers as text."""
    distinct = np.unique(numbers)
    return base64.b64encode(b"".join(int(n).to_bytes(_BYTES, "little") for n in distinct)).decode()


def from_text(text: object, where: str) -> IntArray:
    """Inverse of `as_text`; `DataError` for anything else."""
    try:
        content = base64.b64decode(text if isinstance(text, str) else "-", validate=True)
    except (binascii.Error, ValueError):
        content = b"-"
    if len(content) % _BYTES:
        raise DataError(f"{where}: cases are no fingerprints; fit the model again")
    parts = [content[i : i + _BYTES] for i in range(0, len(content), _BYTES)]
    return np.array([int.from_bytes(part, "little") for part in parts], dtype=np.int64)
