"""`thermoe run`: what people type, turned into one `RunConfig`, run, summed up and reported."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from thermoe.commands.terminal import default_folder, open_console, told_how_to_resume
from thermoe.errors import ConfigError
from thermoe.experiments.config import RunConfig, read_toml
from thermoe.experiments.settings import merge_settings, parse_settings

_COMMA_LISTS = {"strategies": str, "workloads": str, "seeds": int}
_NO_PARAMETERS = ("config", "set_", "out", "resume", "no_report")
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run a model and texts, or the self-contained MoE block, under several strategies, into a run folder.

    Options override the TOML file; what neither names takes its default.

    Attributes:
        config: TOML file with any of the options below, spelled with underscores.
        model: Folder or hub id of a Hugging Face MoE model.
        text: Text files in UTF-8; each is a workload of its own.
        join_texts: Make one workload of all texts.
        strategies: Comma list of routing strategies.
        workloads: Comma list: teacher_forced, prefill, generation for text; standard, high_complexity,
            small_batch, large_batch for the block.
        seeds: Comma list of seeds.
        batch_size: Sequences in step.
        block_size: Positions of a block with fresh context, or tokens of a prompt.
        max_tokens: Tokens used of each text.
        new_tokens: Tokens that generation adds to each prompt.
        samples_per_workload: Batches of each tensor workload.
        passes: Times each workload is gone through.
        control_steps: Steps between two updates of the control plane.
        arrival_rate: Tokens arriving per second, so many that no step waits over 600 s; 0 starts each step when the
            last one ends.
        device: cpu or cuda.
        dtype: auto, float32 or bfloat16; auto is float32 on the CPU and bfloat16 on a GPU.
        experts: int2, int4, int8, fp8, fp8_block, bank, bank8, bank4 or bank2: a quantised copy of the model's experts
            to compute with.
        telemetry: auto, nvml, nvml:INDEX, simulated or replay:FILE.
        window_s: Least length of a measured energy window in seconds.
        scenario: Disturbance of the simulated board, such as hot_ambient or throttling.
        priced_as: qwen3-30b-a3b, mixtral-8x7b, or model for the model's own shape.
        cost_model: File of a fitted cost model instead of the shipped one.
        calibration: File of an earlier calibration.
        calibration_text: Texts to calibrate on instead of the shipped one.
        calibration_tokens: Tokens of them to use.
        expert_type: Experts of the block: simple, quantized (int4) or mixed (dense, int8, int4 and int2 in turn).
        d_model: Width of the block.
        inter_size: Width of one of its experts.
        num_experts: Experts of each of its layers.
        top_k: Experts per token.
        num_layers: Its layers.
        power_budget_w: Mean board power to hold, in watts.
        energy_budget_j_per_token: Energy per token to hold, in joules.
        temp_budget_c: Core temperature to hold, in degrees Celsius.
        latency_budget_ms: Latency of a step to hold, in milliseconds.
        max_quality_loss_pct: Perplexity increase allowed by calibration, in per cent.
        set_: Setting of a strategy, NAME.KEY=VALUE; may be repeated.
        name: Name of the run.
        out: New run folder; runs/TIME-NAME if not given.
        resume: Run folder to go on with; it brings its own configuration.
        csv: Write the tables as CSV too.
        trace: Keep a profiler trace of each strategy's first batch.
        no_report: Leave report.html to a later `thermoe report`.
    """

    config: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[CONFIG.toml]")] = None
    model: str | None = None
    text: tuple[str, ...] | None = None
    join_texts: Flag = False
    strategies: str | None = None
    workloads: str | None = None
    seeds: str | None = None
    batch_size: int | None = None
    block_size: int | None = None
    max_tokens: int | None = None
    new_tokens: int | None = None
    samples_per_workload: int | None = None
    passes: int | None = None
    control_steps: int | None = None
    arrival_rate: float | None = None
    device: str | None = None
    dtype: str | None = None
    experts: str | None = None
    telemetry: str | None = None
    window_s: float | None = None
    scenario: str | None = None
    priced_as: str | None = None
    cost_model: str | None = None
    calibration: str | None = None
    calibration_text: tuple[str, ...] | None = None
    calibration_tokens: int | None = None
    expert_type: str | None = None
    d_model: int | None = None
    inter_size: int | None = None
    num_experts: int | None = None
    top_k: int | None = None
    num_layers: int | None = None
    power_budget_w: float | None = None
    energy_budget_j_per_token: float | None = None
    temp_budget_c: float | None = None
    latency_budget_ms: float | None = None
    max_quality_loss_pct: float | None = None
    set_: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="NAME.KEY=VALUE")
    ] = ()
    name: str | None = None
    out: Path | None = None
    resume: Path | None = None
    csv: Flag = False
    trace: Flag = False
    no_report: Flag = False

    def execute(self) -> int:
        """Run, or go on with a run; print its table and the path of its report."""
        from thermoe.commands.conclude import conclude
        from thermoe.experiments.run import resume_experiment, run_experiment

        console = open_console()
        if self.resume is not None:
            if self.given() or self.config is not None or self.set_ or self.out is not None:
                raise ConfigError("--resume takes its configuration from the run folder: give no other option with it")
            with told_how_to_resume(self.resume):
                resume_experiment(self.resume, console)
                conclude(self.resume, console, report=not self.no_report)
            return 0
        config = self.run_config()
        out = self.out or default_folder(config.name)
        with told_how_to_resume(out):
            run_experiment(config, out, console)
            conclude(out, console, report=not self.no_report)
        return 0

    def given(self) -> dict[str, Any]:
        """Options that were typed, as values of `RunConfig`."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NO_PARAMETERS}
        typed = {name: value for name, value in values.items() if value is not None and value is not False}
        return {k: _comma_list(k, v) if k in _COMMA_LISTS else v for k, v in typed.items()}

    def run_config(self) -> RunConfig:
        """The TOML file, overridden by the options.

        Raises:
            ConfigError: A key, value or combination that cannot be run.
        """
        values = {} if self.config is None else read_toml(self.config)
        where = "options" if self.config is None else str(self.config)
        plain = {k: v for k, v in values.items() if not isinstance(v, dict)} | self.given()
        tables = {k: v for k, v in values.items() if isinstance(v, dict)}
        return RunConfig.from_mapping(plain | merge_settings(tables, parse_settings(self.set_)), where)


def _comma_list(name: str, text: str) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise ConfigError(f"--{name} {text!r}: needs a comma list without gaps, such as a,b,c")
    convert = _COMMA_LISTS[name]
    try:
        return tuple(convert(part) for part in parts)
    except ValueError:
        raise ConfigError(f"--{name} {text!r}: needs a comma list of {convert.__name__}") from None
