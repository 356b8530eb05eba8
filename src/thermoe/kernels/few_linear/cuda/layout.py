"""How the linear kernel is built for a call, and how shared memory is laid out for it.

Shapes: T tokens, C columns, N outputs. The terms (tile, stage, slice, round, parts) are explained in layout.cuh.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache

SHARED_BYTES = 227 * 1024  # all that a block may have
TOKENS = (8, 16, 32, 64)
_TILE, _STAGE_ROWS, _STAGE_TILES = 8, 16, 2
_BLOCK_COLUMNS, _BLOCK_BYTES, _UNIT_BYTES = 32, 64, 512
_MAX_STAGES = 32
_HEAD_BYTES = 640  # of barriers
_ROUNDS = (32, 16, 8, 4, 2)  # tiles; every block of a cluster is sent units in all rounds but the last
_GOOD_RING = 4  # stages that keep the memory busy
_MOST_REGISTERS = 160  # of tokens and weights that a thread holds


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """What a kernel is compiled for.

    Attributes:
        columns: C, a multiple of 8.
        tokens: most tokens, one of `TOKENS`.
        cluster: blocks that share the columns out.
        slices: warps of a group, which share out what a block holds of them.
        groups: of warps, which take turns at the outputs.
        askers: warps that ask for weights.
    """

    columns: int
    tokens: int
    cluster: int
    slices: int
    groups: int
    askers: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.slices * self.groups + self.askers)

    @property
    def token_tiles(self) -> int:
        """Of 16 tokens."""
        return -(-self.tokens // 16)

    @property
    def slice_blocks(self) -> int:
        """Of 32 columns, that a warp takes."""
        blocks = math.ceil(self.columns / _BLOCK_COLUMNS)
        return math.ceil(math.ceil(blocks / self.cluster) / self.slices)

    @property
    def pitch(self) -> int:
        """Bytes from row to row of the weights in shared memory."""
        return _pitch(self.slices * self.slice_blocks * _BLOCK_BYTES)

    @property
    def registers(self) -> int:
        """Of a thread, for tokens, weights on their way and sums; more of them must not be asked for."""
        rows = 4 * self.slice_blocks * (1 if self.tokens == TOKENS[0] else 2 * self.token_tiles)
        return rows + 8 * min(self.slice_blocks, 4) + 8 * self.token_tiles

    def source(self) -> str:
        """The whole translation unit; it includes the files beside this one."""
        macros = (f"#define THERMOE_{f.name.upper()} {getattr(self, f.name)}\n" for f in fields(self))
        return "".join(macros) + '#include "linear.cu"\n'


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Where things lie in a block's shared memory: fields of `Problem` in layout.cuh, and the sum of it.

    Attributes:
        stages: that there is room for; with fewer than a cluster has tiles they are used again.
        rows: of weights that there is room for.
        round_tiles: whose parts there is room for.
        apart: whether parts have room of their own.
        inbox_at, parts_at, stages_at: bytes from the start.
        shared_bytes: in all.
    """

    stages: int
    rows: int
    round_tiles: int
    apart: bool
    inbox_at: int
    parts_at: int
    stages_at: int
    shared_bytes: int


def build_for(columns: int, tokens: int) -> Build | None:
    """The build for rows of so many columns; None where the kernel does not take them."""
    if columns % 8 or columns < _BLOCK_COLUMNS or not 1 <= tokens <= TOKENS[-1]:
        return None
    room = next(most for most in TOKENS if tokens <= most)
    build = Build(columns=columns, tokens=room, cluster=4, slices=4, groups=2, askers=2)
    if build.registers > _MOST_REGISTERS // 2:  # few registers, so that blocks of another launch fit beside
        build = replace(build, slices=8, groups=1)
    return build if build.registers <= _MOST_REGISTERS + 32 else None


@lru_cache(maxsize=1024)
def cut_for(build: Build, num_tiles: int, clusters: int, room: int = SHARED_BYTES) -> Cut | None:
    """Lay `room` bytes out for the largest share of so many tiles; None where two stages do not fit."""
    most = -(-num_tiles // clusters)
    apart = build.token_tiles > build.slice_blocks
    stages = -(-most // _STAGE_TILES)
    rounds = [tiles for tiles in _ROUNDS if tiles * build.token_tiles >= build.cluster and tiles < most]
    if stages <= _MAX_STAGES:
        for tiles in (stages * _STAGE_TILES, *rounds):
            cut = _laid_out(build, stages, _TILE * most, tiles, apart=apart, again=tiles < most)
            if cut.shared_bytes <= room:
                return cut
    for least in (_GOOD_RING, 2):
        for tiles in rounds:
            for count in range(min(_MAX_STAGES, stages), least - 1, -1):
                cut = _laid_out(build, count, _STAGE_ROWS * count, tiles, apart=True, again=True)
                if cut.shared_bytes <= room:
                    return cut
    return None


def _laid_out(build: Build, stages: int, rows: int, tiles: int, *, apart: bool, again: bool) -> Cut:
    """With rounds of `tiles`; `again`: there is more than one."""
    inbox = 0
    if build.cluster > 1:
        units = -(-tiles * build.token_tiles // build.cluster) * build.cluster
        inbox = units * _UNIT_BYTES * (2 if again else 1)
    parts = tiles * _TILE * _pitch(build.slices * build.token_tiles * _BLOCK_BYTES) if apart else 0
    parts_at = _HEAD_BYTES + inbox
    stages_at = -(-(parts_at + parts) // 128) * 128
    return Cut(
        stages=stages,
        rows=rows,
        round_tiles=tiles,
        apart=apart,
        inbox_at=_HEAD_BYTES,
        parts_at=parts_at,
        stages_at=stages_at,
        shared_bytes=stages_at + rows * build.pitch,
    )


def _pitch(row_bytes: int) -> int:
    return row_bytes + 64 if row_bytes % 128 == 0 else row_bytes
