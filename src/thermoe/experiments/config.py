"""One run as data: every parameter, checked; read from TOML, overridden by the command line, written back resolved."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_args

import tomli_w

from thermoe.errors import ConfigError
from thermoe.experiments import choices
from thermoe.experiments.settings import check_settings
from thermoe.types import Budget, RoutingStrategy

BUDGET_FIELDS = {
    "power_budget_w": "power_w",
    "energy_budget_j_per_token": "energy_j_per_token",
    "temp_budget_c": "temp_c",
    "latency_budget_ms": "latency_s",
    "max_quality_loss_pct": "max_quality_loss_pct",
}
#: Seeds are kept in a column of 64-bit integers, and no generator takes a negative one.
_SEED_END = 2**63
_COUNTS = (
    *("batch_size", "new_tokens", "samples_per_workload", "passes", "control_steps", "calibration_tokens"),
    *("d_model", "inter_size", "num_experts", "top_k", "num_layers"),
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run does; `None` means not asked for.

    Attributes:
        model: Folder or hub id of a Hugging Face MoE model; None runs the self-contained block.
        text: Text files; each is a workload of its own.
        join_texts: Whether all texts make one workload, block after block.
        strategies: Routing strategies to compare; none given takes a usual few.
        workloads: `teacher_forced`, `prefill`, `generation` for texts; the four tensor workloads for the block.
        seeds: Seeds of the twin, of arrivals and of synthetic tensors.
        batch_size: Sequences in step (B).
        block_size: Positions with fresh context per block (S).
        max_tokens: Predicted tokens taken from each text; None takes the whole text.
        new_tokens: Tokens that `generation` makes per prompt.
        samples_per_workload: Batches of each tensor workload.
        passes: Times each workload is gone through.
        control_steps: Steps between two updates of the control plane.
        arrival_rate: Tokens that arrive per second, no step waiting over 600 s; 0 starts each when the last ends.
        device: Where the model runs.
        experts: Format of a quantised copy of the model's experts to compute with; None computes with its own.
        dtype: Of a Hugging Face model: `float32`, `bfloat16`, or `auto`, float32 on the CPU and bfloat16 on a GPU.
        telemetry: `auto`, `nvml`, `nvml:INDEX`, `simulated` or `replay:FILE`.
        window_s: Least length of a measured energy window [s].
        scenario: Disturbance of the simulated board.
        priced_as: Model whose layers the steps are priced as; `model` prices its own.
        cost_model: Fitted cost model; None takes the shipped one.
        calibration: Calibration of an earlier run; None calibrates where a strategy needs it.
        calibration_text: Texts to calibrate on; None takes the shipped one.
        calibration_tokens: Tokens of them to use.
        expert_type, d_model, inter_size, num_experts, top_k, num_layers: The self-contained block.
        power_budget_w, energy_budget_j_per_token, temp_budget_c, latency_budget_ms: Limits to hold.
        max_quality_loss_pct: Perplexity increase allowed, by calibration [%].
        settings: Settings of strategies: name, key, value.
        name: Name of the run.
        csv: Whether CSV twins of the tables are written.
        trace: Whether a profiler trace of the first batch of each strategy is kept.
    """

    model: str | None = None
    text: tuple[str, ...] = ()
    join_texts: bool = False
    strategies: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 16
    block_size: int = 512
    max_tokens: int | None = None
    new_tokens: int = 64
    samples_per_workload: int = 8
    passes: int = 1
    control_steps: int = 8
    arrival_rate: float = 0.0
    device: str = "cpu"
    dtype: str = "auto"
    experts: str | None = None
    telemetry: str = "auto"
    window_s: float = 2.0
    scenario: str | None = None
    priced_as: str = "qwen3-30b-a3b"
    cost_model: str | None = None
    calibration: str | None = None
    calibration_text: tuple[str, ...] = ()
    calibration_tokens: int = 8192
    expert_type: str = "simple"
    d_model: int = 256
    inter_size: int = 512
    num_experts: int = 16
    top_k: int = 2
    num_layers: int = 4
    power_budget_w: float | None = None
    energy_budget_j_per_token: float | None = None
    temp_budget_c: float | None = None
    latency_budget_ms: float | None = None
    max_quality_loss_pct: float | None = None
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    name: str = "run"
    csv: bool = False
    trace: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("dtype", "experts"):
            object.__setattr__(self, name, choices.spelled(getattr(self, name)))
        self._check_numbers()
        self._check_names()
        self._check_task()
        check_settings(self.settings)
        self._check_budget()

    @property
    def is_text(self) -> bool:
        """Whether a Hugging Face model reads text, rather than the block synthetic tensors."""
        return self.model is not None

    @property
    def resolved_workloads(self) -> tuple[str, ...]:
        """The workloads asked for, or what is usual for the kind of run."""
        if self.workloads:
            return self.workloads
        return (choices.TextWorkload.TEACHER_FORCED,) if self.is_text else choices.TENSOR_WORKLOADS

    @property
    def resolved_strategies(self) -> tuple[str, ...]:
        """The strategies asked for, or some that need no settings: the block has no text to calibrate on."""
        if self.strategies:
            return self.strategies
        return choices.TEXT_STRATEGIES if self.is_text else choices.TENSOR_STRATEGIES

    def budget(self) -> Budget:
        """The limits, in SI units."""
        values: dict[str, float | None] = {ours: getattr(self, flag) for flag, ours in BUDGET_FIELDS.items()}
        if self.latency_budget_ms is not None:
            values["latency_s"] = self.latency_budget_ms * 1e-3
        return Budget(**values)

    def settings_of(self, strategy: str) -> dict[str, float]:
        """Settings that reach one strategy; on the block, which has no calibration, some have defaults of their own."""
        given = dict(self.settings.get(strategy, {}))
        if self.is_text:
            return given
        if strategy in (RoutingStrategy.KERNEL_AWARE, RoutingStrategy.KERNEL_AWARE_TTHA):
            return {"price": 1.0 / self.top_k**2} | given  # the value of one choice of average weight
        if strategy == RoutingStrategy.OPPORTUNISTIC:
            return {"k0": float(max(1, self.top_k // 2))} | given
        return given

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "configuration") -> Self:
        """Build from TOML-like values: tables are settings of the strategy they are named after.

        Raises:
            ConfigError: An unknown key, a value of the wrong type or out of range.
        """
        known = {f.name for f in fields(cls)} - {"settings"}
        plain = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
        tables = {k: dict(v) for k, v in values.items() if isinstance(v, Mapping)}
        unknown = sorted(set(plain) - known)
        if unknown:
            raise ConfigError(f"unknown key {', '.join(unknown)} in {where}: choose from {', '.join(sorted(known))}")
        lists = {f.name for f in fields(cls) if isinstance(f.default, tuple)}
        for key in lists & set(plain):
            value = plain[key]
            plain[key] = tuple(value) if isinstance(value, list | tuple) else (value,)
        return cls(**plain, settings=tables)

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read one TOML file."""
        return cls.from_mapping(read_toml(path), str(path))

    def as_mapping(self) -> dict[str, Any]:
        """The inverse of `from_mapping`: every default written out, keys without a value left out."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "settings"}
        plain |= {"workloads": self.resolved_workloads, "strategies": self.resolved_strategies}
        listed = {k: [_plain(x) for x in v] if isinstance(v, tuple) else _plain(v) for k, v in plain.items()}
        return {k: v for k, v in listed.items() if v is not None} | {k: dict(v) for k, v in self.settings.items() if v}

    def to_toml(self) -> str:
        """The resolved configuration as a TOML document."""
        return tomli_w.dumps(self.as_mapping())

    def _check_types(self) -> None:
        for f in fields(self):
            if f.name == "settings":
                continue
            value = getattr(self, f.name)
            example = f.default if f.default is not MISSING else None
            if isinstance(example, tuple):
                element = int if f.name == "seeds" else str
                if not all(type(v) is element or (isinstance(v, element) and element is str) for v in value):
                    raise ConfigError(f"{f.name} = {list(value)}: needs a list of {element.__name__}")
                continue
            allowed = get_args(f.type) or (f.type,)
            if float in allowed:
                allowed = (*allowed, int)
            if not any(
                value is None if a is type(None) else type(value) is a or (a is str and isinstance(value, str))
                for a in allowed
            ):
                wanted = " or ".join(sorted({a.__name__ for a in allowed if a is not type(None)}))
                raise ConfigError(f"{f.name} = {value!r}: needs {wanted}")

    def _check_numbers(self) -> None:
        least = dict.fromkeys(_COUNTS, 1) | {"block_size": 2, "max_tokens": 1, "arrival_rate": 0, "window_s": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= low):
                raise ConfigError(f"{name} = {value}: needs a finite number of at least {low}")
        if self.top_k >= self.num_experts:
            raise ConfigError(
                f"top_k = {self.top_k} of num_experts = {self.num_experts}: needs fewer, else nothing is chosen"
            )
        if not self.seeds:
            raise ConfigError("seeds is empty: needs at least one, such as --seeds 0")
        for seed in self.seeds:
            if not 0 <= seed < _SEED_END:
                raise ConfigError(f"seed {seed}: needs a whole number of at least 0 and below 2**63")

    def _check_names(self) -> None:
        for label, got, known in (
            ("strategy", self.strategies, choices.STRATEGY_NAMES),
            ("workload", self.workloads, choices.TEXT_WORKLOADS if self.is_text else choices.TENSOR_WORKLOADS),
            ("device", (self.device,), choices.DEVICES),
            ("dtype", (self.dtype,), choices.DTYPES),
            ("priced_as", (self.priced_as,), choices.PRICE_NAMES),
            ("expert_type", (self.expert_type,), tuple(choices.EXPERT_TYPES)),
            ("experts", () if self.experts is None else (self.experts,), choices.EXPERT_FORMATS),
        ):
            for name in got:
                if name not in known:
                    raise ConfigError(f"unknown {label} {name!r}: choose from {', '.join(known)}")
            if len(set(got)) < len(got):
                raise ConfigError(f"{label} named twice in {', '.join(got)}: name each once")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seed named twice in {list(self.seeds)}: name each once")
        if not choices.TELEMETRY.fullmatch(self.telemetry):
            raise ConfigError(f"unknown telemetry {self.telemetry!r}: choose from {choices.TELEMETRY_FORMS}")

    def _check_task(self) -> None:
        if self.text and not self.is_text:
            raise ConfigError("text given without a model: add --model with the folder or hub id of an MoE model")
        if self.is_text and not self.text:
            raise ConfigError("model given without text: add --text with at least one text file")
        if not self.name or "/" in self.name:
            raise ConfigError(f"name = {self.name!r}: needs a name without '/', it becomes part of a folder's name")
        if self.is_text and self.expert_type != "simple":
            raise ConfigError(f"expert_type {self.expert_type} is for runs without a model: use experts, such as int4")
        if not self.is_text:
            self._check_block()

    def _check_block(self) -> None:
        """The block reads no text: what rests on calibration text has nothing to rest on."""
        why = "the self-contained block reads no text to calibrate on"
        if RoutingStrategy.STATIC_OPTIMAL in self.strategies:
            raise ConfigError(f"static_optimal chooses by calibration, {why}: leave it out, or give --model and --text")
        if self.experts is not None:
            raise ConfigError(f"experts {self.experts} is for runs with a model: use expert_type, such as quantized")
        for name in ("calibration", "calibration_text", "max_quality_loss_pct"):
            if getattr(self, name):
                raise ConfigError(f"{name} given, but {why}: leave it out, or give --model and --text")

    def _check_budget(self) -> None:
        """Refuse limits that nobody would hold."""
        held = set(self.resolved_strategies)
        for name, limit in BUDGET_FIELDS.items():
            holders = choices.CALIBRATED_STRATEGIES if limit == "max_quality_loss_pct" else choices.ADAPTIVE_STRATEGIES
            if getattr(self.budget(), limit) is not None and not held & holders:
                raise ConfigError(
                    f"{name} given, but none of {', '.join(sorted(held))} holds it: "
                    f"add {' or '.join(sorted(holders))} to the strategies"
                )


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, or one line that says why there is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration {path}: name an existing TOML file, or use options only") from None
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path} cannot be read as text: {err}") from err
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{path} is not valid TOML: {err}") from err


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value
