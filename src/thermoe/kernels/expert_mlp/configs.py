"""How the expert kernels are launched: frozen choices per GPU and shape, a rule for the rest, candidates for a tuner.

`configs.json` holds {"schema": 1, "entries": [{"gpu", "format", "d_model", "inter_size", "num_experts", "top_k",
"tokens", "config"}]}: `gpu` as torch.cuda.get_device_name says, `format` as `format_name` says, `tokens` the bucket
(`token_bucket`), `config` as `MlpConfig.to_dict` writes it. It is read once, at first use. Nothing here measures.

Shapes: T tokens, K experts per token, E experts, D model width, I expert width.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import resources
from itertools import product
from typing import Any

import torch

from thermoe.kernels.expert_mlp.weights import DenseMatrices, ExpertWeights, Fp8Matrices, Matrices

SCHEMA = 1
FEW_SLOTS = 512  # up to here a program finds its slots among the ids by itself; beyond, a dispatch plan is made
FEW_TOKENS = 64
# From how many places of an expert, on average, the grouped kernel led Triton's on an H200 (128 experts, top-8): int4
# 200 us against 264 at 6, 280 against 455 at 64; bf16 322 against 311 at 16, 354 against 403 at 64.
GROUPED_PLACES = {"bf16": 32, "int4-g128": 4}
_SHARED_BYTES = 220 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One launch: `rows` of the weights (gate and up together) by `tokens`, `columns` at a time.

    Attributes:
        rows: weight rows of a tile; at least 64 for the warpgroup instructions.
        tokens: tokens of a tile.
        columns: columns read at a time by dense and fp8 matrices (at most 128 for blocks); bit planes go by 128.
        tail: the last tile of an expert is this narrow where it holds no more tokens; 0: never. With a plan only.
        stages: loads in flight.
        warps: warps of a program.
    """

    rows: int
    tokens: int
    columns: int
    stages: int
    warps: int
    tail: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpConfig:
    """How one call runs.

    Attributes:
        fc1, fc2: the two products.
        scale_in: scales of groups multiply the weights (rounded to x's dtype), or the sums over a group.
        dependent: each launch may start while the one before it ends (compute capability 9.0 and later).
        eight: e4m3 weights meet tokens quantised to e4m3, each by its own largest value. It changes the result by
            more than rounding to bf16, so it is never chosen unless the frozen file says so.
        cuda: the kernel built with nvcc is taken where it is there and supports the call.
        grouped: with a plan, the CUDA C++ kernel for many tokens is taken where it can be built and supports the call
            (`cuda_grouped`); e4m3 weights then meet e4m3 tokens, so for them it needs `eight` too.
    """

    fc1: Tile
    fc2: Tile
    scale_in: bool = False
    dependent: bool = False
    eight: bool = False
    cuda: bool = False
    grouped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For the frozen file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MlpConfig":
        """From the frozen file."""
        tiles = {name: Tile(**values[name]) for name in ("fc1", "fc2")}
        return cls(**{**values, **tiles})


@dataclass(frozen=True, slots=True)
class Shape:
    """What a choice depends on beside the GPU."""

    format: str
    d_model: int
    inter_size: int
    num_experts: int
    top_k: int
    num_tokens: int

    @property
    def few(self) -> bool:
        """Whether programs find their slots by themselves."""
        return self.num_tokens <= FEW_TOKENS and self.num_tokens * self.top_k <= FEW_SLOTS

    @property
    def width(self) -> str:
        """The kind of weight: dense, float32, fp8 or planes."""
        prefix = self.format.split("-")[0]
        return {"bf16": "dense", "f16": "dense", "f32": "float32"}.get(prefix, "fp8" if prefix == "fp8" else "planes")


def format_name(matrices: Matrices) -> str:
    """bf16, f16, f32, fp8-channel, fp8-block, int4-g128, bank8-g128 and the like."""
    if isinstance(matrices, DenseMatrices):
        return {torch.bfloat16: "bf16", torch.float16: "f16"}.get(matrices.weight_ENC.dtype, "f32")
    if isinstance(matrices, Fp8Matrices):
        return "fp8-block" if matrices.blocks else "fp8-channel"
    return f"{'bank' if matrices.nested else 'int'}{matrices.max_bits}-g{matrices.group_size}"


def shape_of(experts: ExpertWeights, num_tokens: int, top_k: int) -> Shape:
    """The shape of a call; the format is that of the first matrix."""
    name = format_name(experts.fc1)
    return Shape(name, experts.d_model, experts.inter_size, experts.num_experts, top_k, num_tokens)


def token_bucket(num_tokens: int) -> int:
    """The power of two at or above a number of tokens: the sizes that are tuned."""
    return 1 << max(0, num_tokens - 1).bit_length()


@lru_cache(maxsize=4096)
def choose(gpu: str, capability: int, shape: Shape) -> MlpConfig:
    """The frozen choice for a GPU and shape, or the rule's.

    Args:
        gpu: name of the device.
        capability: 10 * major + minor.
        shape: of the call.
    """
    key = (gpu, *asdict(replace(shape, num_tokens=token_bucket(shape.num_tokens))).values())
    return _frozen().get(key) or default(shape, capability)


def default(shape: Shape, capability: int) -> MlpConfig:
    """A sensible choice for any shape."""
    newer = capability >= 90
    if shape.width == "float32":
        tile = Tile(rows=32, tokens=16, columns=32, stages=2, warps=4)
        return MlpConfig(fc1=tile, fc2=tile, dependent=False)
    if shape.few:
        return _default_few(shape, newer=newer)
    if not newer:
        tile = Tile(rows=128, tokens=64, columns=32, stages=3, warps=4)
    elif shape.width == "dense":
        tile = Tile(rows=256, tokens=128, columns=64, stages=3, warps=8, tail=32)
    else:
        tile = Tile(rows=128, tokens=128, columns=64, stages=3, warps=8, tail=32)
    if shape.num_tokens * shape.top_k < 48 * shape.num_experts:
        tile = replace(tile, rows=min(tile.rows, 128), tokens=64, tail=16, warps=4)
    second = replace(tile, rows=min(tile.rows, 128))  # short sums: two small programs hide each other's ends
    return MlpConfig(fc1=tile, fc2=second, scale_in=True, grouped=newer and _grouped_leads(shape))


def _grouped_leads(shape: Shape) -> bool:
    """Whether the grouped kernel is faster where it can be built; what it does not take goes to Triton anyway."""
    least = GROUPED_PLACES.get(shape.format)
    return least is not None and shape.num_tokens * shape.top_k >= least * shape.num_experts


def _default_few(shape: Shape, *, newer: bool) -> MlpConfig:
    if not newer:
        tile = Tile(rows=32, tokens=16, columns=128 if shape.width == "fp8" else 64, stages=4, warps=4)
        return MlpConfig(fc1=replace(tile, rows=64), fc2=tile)
    rows, columns, stages = {"dense": (128, 64, 4), "planes": (64, 128, 3)}.get(shape.width, (64, 128, 4))
    tile = Tile(rows=rows, tokens=16, columns=columns, stages=stages, warps=4)
    return MlpConfig(fc1=tile, fc2=tile, dependent=True, cuda=True)  # measured: it leads in every format


def config_space(shape: Shape, capability: int = 90) -> Iterator[MlpConfig]:
    """Candidates worth timing for a shape, the rule's first. The two products are varied together, then apart.

    A tuner times each (one that does not fit the GPU raises `triton.runtime.errors.OutOfResources`), keeps the best by
    time or energy and writes `to_dict` of it into the frozen file.
    """
    first = default(shape, capability)
    yield first
    if first.grouped:  # it is no tile of Triton's
        first = replace(first, grouped=False)
        yield first
    seen = {first}
    for tile, scale_in in product(_tiles(shape), (False, True) if shape.width == "planes" else (first.scale_in,)):
        for config in (
            replace(first, fc1=tile, fc2=tile, scale_in=scale_in),
            replace(first, fc1=tile, scale_in=scale_in),
            replace(first, fc2=tile, scale_in=scale_in),
        ):
            if config not in seen:
                seen.add(config)
                yield config
    if shape.width == "fp8" and not shape.few:
        for rows, tokens in ((256, 128), (128, 128)):
            tile = Tile(rows=rows, tokens=tokens, columns=128, stages=3, warps=8, tail=32)
            yield replace(first, fc1=tile, fc2=tile, eight=True)
        if capability >= 90:
            yield replace(first, eight=True, grouped=True)


def _tiles(shape: Shape) -> Iterator[Tile]:
    planes, element_bytes = shape.width == "planes", 1 if shape.width == "fp8" else 2
    columns = (64,) if planes else (64, 128)
    if shape.few:
        grid = product((32, 64, 128), (16,), columns, (3, 4, 6), (4,), (0,))
    else:
        grid = product((64, 128, 256), (64, 128, 256), columns, (2, 3, 4), (4, 8), (0, 32))
    for rows, tokens, width, stages, warps, tail in grid:
        row_bytes = 64 if planes else width * element_bytes
        shared = stages * (rows * row_bytes + tokens * (128 if planes else width) * 2)
        if shared <= _SHARED_BYTES and rows * tokens <= warps * 32 * 128:
            yield Tile(rows=rows, tokens=tokens, columns=width, stages=stages, warps=warps, tail=tail)


@lru_cache(maxsize=1)
def _frozen() -> dict[tuple[Any, ...], MlpConfig]:
    text = resources.files("thermoe.kernels.expert_mlp").joinpath("configs.json").read_text()
    names = ("gpu", "format", "d_model", "inter_size", "num_experts", "top_k", "tokens")
    return {
        tuple(entry[name] for name in names): MlpConfig.from_dict(entry["config"])
        for entry in json.loads(text)["entries"]
    }
