"""`thermoe calibrate`: budgets of a model mapped to quality and energy, in one file."""

from dataclasses import dataclass
from pathlib import Path

from thermoe.commands.terminal import open_console
from thermoe.experiments.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Map the budgets of a model to quality and energy on calibration text, into one file.

    Attributes:
        model: Folder or hub id of a Hugging Face MoE model.
        text: Calibration texts in UTF-8.
        out: File to write.
        tokens: Tokens of the texts to use.
        batch_size: Sequences in step.
        block_size: Positions of a block with fresh context.
        device: cpu or cuda.
    """

    model: str
    text: tuple[str, ...]
    out: Path = Path("calibration.json")
    tokens: int = 8192
    batch_size: int = 16
    block_size: int = 512
    device: str = "cpu"

    def execute(self) -> int:
        """Calibrate and write the file."""
        from thermoe.experiments.calibration import calibrate_to_file

        config = RunConfig(
            model=self.model,
            text=self.text,
            calibration_text=self.text,
            calibration_tokens=self.tokens,
            batch_size=self.batch_size,
            block_size=self.block_size,
            device=self.device,
        )
        calibrate_to_file(config, self.out, open_console())
        print(f"calibration: {self.out}")
        return 0
