"""What a question to the cost model may hold, and which fitted law answers it."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from thermoe.cost.cases import DTYPE_BITS
from thermoe.cost.fitted import FittedLaw
from thermoe.cost.observations import LawKey
from thermoe.errors import CostError
from thermoe.format_names import format_name
from thermoe.types import FloatArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

USUAL_BITS = 16.0
_MOST_BITS, _MOST_LOAD = 64, 1e12
_ROUNDING = 1e-9  # of expected experts: those of one token are k but for the last place


def numbers(name: str, values: "ArrayLike") -> FloatArray:
    """Values as an array.

    Raises:
        CostError: They are no numbers.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise CostError(f"{name}: needs numbers ({' '.join(str(err).split())})") from err


def one_case(routed_rows: float, distinct: float) -> tuple[FloatArray, FloatArray]:
    """Both counts of one case as arrays without axes.

    Raises:
        CostError: They are no numbers, or several.
    """
    counts = numbers("routed_rows", routed_rows), numbers("distinct_experts", distinct)
    if counts[0].ndim or counts[1].ndim:
        raise CostError(f"counts of shapes {counts[0].shape}, {counts[1].shape}: one each, predict_many takes several")
    return counts


def checked_tokens(name: str, tokens: "ArrayLike") -> float:
    """One number of tokens.

    Raises:
        CostError: No number, text, several, or less than 1.
    """
    count = numbers(name, tokens)
    if isinstance(tokens, str) or count.ndim or not 1 <= count < np.inf:
        raise CostError(f"{name} = {tokens!r}: needs one number of tokens, at least 1")
    return float(count)


def refuse_impossible(num_experts: int, routed_rows: FloatArray, distinct: FloatArray) -> None:
    """Refuse counts that no batch has; means over batches, which are not whole, are fine. Arrays that broadcast.

    Raises:
        CostError: More experts touched than there are or than rows, or rows on no expert.
    """
    most = np.minimum(num_experts, routed_rows)
    wrong = (distinct > most * (1.0 + _ROUNDING)) | ((distinct <= 0) & (routed_rows > 0))
    if wrong.any():
        rows, touched, *_ = (np.broadcast_to(a, wrong.shape)[wrong][0] for a in (routed_rows, distinct))
        raise CostError(
            f"{rows:g} routed rows on {touched:g} distinct experts of {num_experts}: needs an expert for rows, and no "
            "more experts than there are or than rows"
        )


def loads_of(loads: "ArrayLike", num_experts: int) -> FloatArray:
    """Loads of a layer's experts in rows, (..., E).

    Raises:
        CostError: Not a number for each expert, negative, not finite or beyond all reason.
    """
    n = numbers("loads", loads)
    if n.ndim < 1 or not n.size or n.shape[-1] != num_experts or not ((n >= 0) & (n <= _MOST_LOAD)).all():
        raise CostError(f"loads of shape {n.shape}: need (..., {num_experts}), not negative and {_MOST_LOAD:g} at most")
    return n


def precision_and_law(
    operations: Mapping[LawKey, FittedLaw], op: str, bits: float | None, impl: str | None, dtype: str | None
) -> tuple[float, LawKey]:
    """Precision of the weights that is asked for [bit], and the key that answers.

    Where neither bits nor a format are given, that is 16 if any of it was measured or nothing at all, else the
    precision with most measurements: a model of float32 rows answers for float32.

    Raises:
        CostError: As `weight_bits` and `answering_key`.
    """
    dtype = None if dtype is None else format_name(dtype)
    if bits is None and dtype is None:
        bits = usual_bits(operations, op, impl)
    asked = weight_bits(bits, dtype)
    return asked, answering_key(operations, op, asked, impl, dtype)


def usual_bits(operations: Mapping[LawKey, FittedLaw], op: str, impl: str | None = None) -> float:
    """What weights are taken to hold where nobody says [bit]; see `precision_and_law`."""
    found = {key: law for key, law in operations.items() if key[0] == op and impl in (None, key[1])}
    if not found or any(DTYPE_BITS[dtype] == USUAL_BITS for _, _, dtype in found):
        return USUAL_BITS
    return DTYPE_BITS[max(found, key=lambda key: found[key].num_rows)[2]]


def weight_bits(bits: float | None, dtype: str | None) -> float:
    """Precision of the weights that is asked for, by bits, by format, or by both where they agree [bit].

    Raises:
        CostError: An unknown format, bits that cannot be, or that are not those of the format.
    """
    if dtype is not None and dtype not in DTYPE_BITS:
        raise CostError(f"format {dtype} is not known: choose from {', '.join(DTYPE_BITS)}")
    if bits is None:
        return DTYPE_BITS[dtype] if dtype is not None else USUAL_BITS
    asked = numbers("bits", bits)
    if asked.ndim or not 0 < asked <= _MOST_BITS:
        raise CostError(f"bits = {bits}: needs one number over 0, {_MOST_BITS} at most")
    if dtype is not None and DTYPE_BITS[dtype] != asked:
        raise CostError(f"{dtype} holds weights of {DTYPE_BITS[dtype]:g} bits, not of {bits:g}: leave one of them out")
    return float(asked)


def answering_key(
    operations: Mapping[LawKey, FittedLaw], op: str, bits: float, impl: str | None, dtype: str | None
) -> LawKey:
    """The fitted key with most measurements that answers, or one that no fit has: then it is physics.

    Raises:
        CostError: An implementation that was not measured; the message says which were.
    """
    found = {
        k: f for k, f in operations.items() if k[0] == op and (k[2] == dtype if dtype else DTYPE_BITS[k[2]] == bits)
    }
    if impl is not None:
        alike, found = found, {k: f for k, f in found.items() if k[1] == impl}
        if not found:
            asked = f"{op} in {dtype}" if dtype else f"{op} at {bits:g} bit"
            raise CostError(_not_measured(asked, impl, alike or [k for k in operations if k[0] == op], bool(alike)))
    if found:
        return max(found, key=lambda k: found[k].num_rows)
    return op, "", dtype or next((d for d, b in DTYPE_BITS.items() if b == bits), "bfloat16")


def _not_measured(asked: str, impl: str, known: Iterable[LawKey], is_alike: bool) -> str:
    """Why an implementation has no answer; what is known is alike but for the implementation, or of other formats."""
    told = ", ".join(f"{name} in {dtype} ({DTYPE_BITS[dtype]:g} bit)" for _, name, dtype in sorted(known))
    if not told:
        return f"{asked} was not measured by any implementation, nor by {impl}: leave impl out for what physics says"
    if is_alike:
        return f"{asked} has no measured implementation {impl}: known are {told}"
    return f"{asked} was not measured by any implementation, nor by {impl}: known are {told}"
