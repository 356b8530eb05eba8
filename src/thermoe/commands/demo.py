"""`thermoe demo`: the shipped model on the shipped texts, under every strategy."""

from dataclasses import dataclass
from pathlib import Path

from thermoe.commands.terminal import default_folder, open_console, told_how_to_resume
from thermoe.experiments.config import RunConfig

DEMO_TARGET_J_PER_TOKEN = 0.6
"""22 % under what baseline takes on the twin (0.77): a little more than the default quality budget gives."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the shipped model on its texts under eight strategies on the digital twin, and write a report.

    Attributes:
        out: New run folder; runs/TIME-demo if not given.
        max_tokens: Tokens used of each text.
    """

    out: Path | None = None
    max_tokens: int = 8208

    def execute(self) -> int:
        """Run; print the table and the path of the report."""
        from thermoe.commands.conclude import conclude
        from thermoe.experiments.run import run_experiment

        console, out = open_console(), self.out or default_folder("demo")
        with told_how_to_resume(out):
            run_experiment(demo_config(self.max_tokens), out, console)
            conclude(out, console)
        return 0


def demo_config(max_tokens: int) -> RunConfig:
    """The demo as a run: every strategy, the shipped model, texts it has not seen."""
    from thermoe.demo import calibration_path, demo_model_path, demo_text_paths
    from thermoe.experiments.choices import STRATEGY_NAMES

    return RunConfig(
        model=str(demo_model_path()),
        text=tuple(str(path) for path in demo_text_paths()),
        strategies=STRATEGY_NAMES,
        join_texts=True,
        max_tokens=max_tokens,
        block_size=256,
        telemetry="simulated",
        calibration=str(calibration_path()),
        settings={"kernel_aware_ttha": {"target_energy_j_per_token": DEMO_TARGET_J_PER_TOKEN}},
        name="demo",
    )
