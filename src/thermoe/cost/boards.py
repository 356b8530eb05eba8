"""Boards of one product differ in what they draw: one H200 takes a tenth less above idle than another.

Every sweep begins with a copy of gigabytes, and most hold calls so short that the board draws little more than at rest.
From both it is known how a sweep's board stands to another, and energies of several occasions can stand side by side.
Only the same copy tells: another one draws another power.
Shapes: B rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from thermoe.cost.rows import CostRow
from thermoe.types import BoolArray, FloatArray

# A row with the least power tells what is drawn at rest only if it is as low as that of other boards, about.
_MOST_AT_REST = 1.25
_WITHIN = (0.5, 2.0)  # of the reference: beyond, something else was measured
_LEAST_ABOVE = 0.3  # of what the reference's longest copy draws above rest: shorter copies tell too little


@dataclass(frozen=True, slots=True)
class Board:
    """What a board draws.

    Attributes:
        rest_w: In calls too short to do anything [W].
        above_w: More than that in a long copy [W].
    """

    rest_w: float
    above_w: float


@dataclass(frozen=True, slots=True)
class Boards:
    """Boards of rows beside the one that all are compared with (B,).

    Attributes:
        rest_w: Of each row's board; NaN where nothing is known, then it is the reference (B,) [W].
        factor: Power above rest over that of the reference (B,).
        reference_rest_w: Of the reference; NaN where nothing is known (B,) [W].
    """

    rest_w: FloatArray
    factor: FloatArray
    reference_rest_w: FloatArray

    def take(self, chosen: Any) -> Self:
        """The rows of an index or a mask."""
        return type(self)(self.rest_w[chosen], self.factor[chosen], self.reference_rest_w[chosen])

    def to_reference_j(self, energy_j: FloatArray, latency_s: FloatArray, throttled: BoolArray) -> FloatArray:
        """What the reference would have taken (B,) [J]; rows at the power limit stay, which is the same for all."""
        known = np.isfinite(self.rest_w) & ~throttled
        above_j = (energy_j - self.rest_w * latency_s) / self.factor
        return np.where(known, self.reference_rest_w * latency_s + above_j, energy_j)

    def from_reference_j(self, energy_j: FloatArray, latency_s: FloatArray, limit_w: float) -> FloatArray:
        """What each row's board takes where the reference takes this (B,) [J]; work at the power limit stays there."""
        power_w = energy_j / latency_s
        there_w = np.minimum(self.rest_w + self.factor * (power_w - self.reference_rest_w), limit_w)
        at_limit = power_w > 0.99 * limit_w
        return np.where(np.isfinite(self.rest_w) & ~at_limit, there_w, power_w) * latency_s


def same_board(count: int) -> Boards:
    """Rows of one board, as far as is known."""
    return Boards(np.full(count, np.nan), np.ones(count), np.full(count, np.nan))


def boards_by_occasion(rows: Sequence[CostRow]) -> tuple[dict[str, Board], Board | None]:
    """The board of each occasion that tells, and the one with most energies, to which others are compared."""
    by_occasion = _with_energy(rows)
    alone = {occasion: board for occasion, found in by_occasion.items() if (board := _board(found)) is not None}
    if not alone:
        return {}, None
    usual = max(alone, key=lambda occasion: (len(by_occasion[occasion]), occasion))
    reference, boards = alone[usual], {usual: alone[usual]}
    for occasion in alone:
        same = _same_copy(by_occasion[occasion], by_occasion[usual])
        if occasion == usual or same is None:
            continue
        rest_w, above_w = alone[occasion].rest_w, same[0] - alone[occasion].rest_w
        usual_w = same[1] - reference.rest_w
        if min(above_w, usual_w) > _LEAST_ABOVE * reference.above_w:
            boards[occasion] = Board(rest_w, reference.above_w * above_w / usual_w)
    return {o: b for o, b in boards.items() if _is_alike(b, reference)}, reference


def tells_board(rows: Sequence[CostRow]) -> BoolArray:
    """Which rows tell boards apart (B,): the longest copy of each occasion, and its row with the least power.

    None where a single occasion has copies.
    """
    found = [some for some in _with_energy(rows).values() if _copies(some)]
    told: set[int] = set()
    if len(found) > 1:
        told |= {id(min(some, key=lambda r: r.power_w or np.inf)) for some in found}
        told |= {id(max(_copies(some), key=lambda r: r.bytes_moved or 0.0)) for some in found}
    return np.array([id(row) in told for row in rows], dtype=np.bool_)


def boards_of(rows: Sequence[CostRow], known: Mapping[str, Board], reference: Board | None) -> Boards:
    """Boards of some rows (B,), from those of all occasions."""
    if reference is None:
        return same_board(len(rows))
    boards = [known.get(row.occasion, reference) for row in rows]
    rest_w, above_w = np.array([b.rest_w for b in boards]), np.array([b.above_w for b in boards])
    return Boards(rest_w, above_w / reference.above_w, np.full(len(rows), reference.rest_w))


def _with_energy(rows: Sequence[CostRow]) -> dict[str, list[CostRow]]:
    by_occasion: dict[str, list[CostRow]] = {}
    for row in rows:
        if row.power_w is not None and row.energy_mj is not None:
            by_occasion.setdefault(row.occasion, []).append(row)
    return by_occasion


def _copies(rows: Sequence[CostRow]) -> list[CostRow]:
    return [r for r in rows if r.op == "copy" and r.bytes_moved and not r.throttled]


def _same_copy(rows: Sequence[CostRow], others: Sequence[CostRow]) -> tuple[float, float] | None:
    """Power of the longest copy that both measured, of each [W]."""
    mine, theirs = ({r.case_key: r for r in _copies(some)} for some in (rows, others))
    both = [key for key in mine if key in theirs]
    longest = max(both, key=lambda key: mine[key].bytes_moved or 0.0, default=None)
    return None if longest is None else (mine[longest].power_w or 0.0, theirs[longest].power_w or 0.0)


def _board(rows: Sequence[CostRow]) -> Board | None:
    """From the longest copy that was not throttled and the row with the least power; None without such a copy."""
    copies = _copies(rows)
    if len(rows) < 2 or not copies:
        return None
    longest_w = max(copies, key=lambda r: r.bytes_moved or 0.0).power_w or 0.0
    rest_w = min(r.power_w or np.inf for r in rows)
    return Board(rest_w, longest_w - rest_w) if longest_w > rest_w else None


def _is_alike(board: Board, reference: Board) -> bool:
    low, high = _WITHIN
    return board.rest_w <= _MOST_AT_REST * reference.rest_w and low <= board.above_w / reference.above_w <= high
