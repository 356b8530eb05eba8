"""The demo model, its texts and its calibration, shipped as package data (made as docs/demo_model.md and
docs/concepts/experiments.md say)."""

from importlib.resources import files
from pathlib import Path

from thermoe.errors import DataError


def demo_model_path() -> Path:
    """Folder of the demo model in Hugging Face format, for `from_pretrained`.

    Raises:
        DataError: the installation holds no model.
    """
    return _shipped("model/config.json").parent


def demo_text_paths() -> list[Path]:
    """Texts that the demo model never saw in training, one per source, in alphabetical order.

    Raises:
        DataError: the installation holds no texts.
    """
    folder = _shipped("text/calibration.txt").parent
    return sorted(folder.glob("heldout_*.txt"))


def calibration_text_path() -> Path:
    """Text for calibration, drawn from the training part: disjoint from `demo_text_paths()`.

    Raises:
        DataError: the installation holds no texts.
    """
    return _shipped("text/calibration.txt")


def calibration_path() -> Path:
    """Calibration of the demo model on `calibration_text_path()`, as `thermoe calibrate` writes it.

    Raises:
        DataError: the installation holds no calibration.
    """
    return _shipped("calibration.json", maker="thermoe calibrate")


def _shipped(name: str, maker: str = "scripts/train_demo_model.py") -> Path:
    path = Path(str(files(__name__) / name))
    if not path.is_file():
        raise DataError(
            f"the demo's {name} is missing from this installation ({path}): reinstall thermoe, or make it with {maker}"
        )
    return path


__all__ = ["calibration_path", "calibration_text_path", "demo_model_path", "demo_text_paths"]
