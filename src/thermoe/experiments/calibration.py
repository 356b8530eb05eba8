"""Calibration of a run: from a file, from the run folder of an interrupted run, or made anew and kept there."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from thermoe.demo import calibration_text_path
from thermoe.errors import ConfigError, DataError
from thermoe.experiments.choices import CALIBRATED_STRATEGIES
from thermoe.experiments.config import RunConfig
from thermoe.experiments.models import load_model
from thermoe.experiments.progress import telling
from thermoe.experiments.store import write_file
from thermoe.integrations.calibrate import calibrate
from thermoe.integrations.inspect import find_routers
from thermoe.routing.calibration import Calibration
from thermoe.workloads import TextBatch, TextBlocks

CALIBRATION_FILE = "calibration.json"


def obtain(config: RunConfig, model: Any, tokenizer: Any, console: Console) -> Calibration | None:
    """The calibration of a new run; None where no strategy needs one, or there is no text to calibrate on.

    Raises:
        DataError: A file that holds no calibration of this model, or calibration text that is too short.
    """
    if not CALIBRATED_STRATEGIES & set(config.resolved_strategies) or model is None:
        return None
    if config.calibration:
        return _fitting(read(Path(config.calibration)), config.calibration, model)
    # By way of the file's form, so that a resumed run goes on from the same numbers.
    return Calibration.from_dict(json.loads(json.dumps(make(config, model, tokenizer, console).to_dict())))


def kept(folder: Path, model: Any) -> Calibration | None:
    """The calibration that an interrupted run kept in its folder, if any.

    Raises:
        DataError: The file holds no calibration of this model.
    """
    file = folder / CALIBRATION_FILE
    return _fitting(read(file), str(file), model) if model is not None and file.is_file() else None


def calibrate_to_file(config: RunConfig, out: Path, console: Console) -> None:
    """Calibrate the configured model on its calibration text and write one file."""
    assert config.model is not None
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder: name a file in it, such as {out / CALIBRATION_FILE}")
    model, tokenizer = load_model(config.model, config.device, config.dtype)
    write_file(out, json.dumps(make(config, model, tokenizer, console).to_dict()))


def make(config: RunConfig, model: Any, tokenizer: Any, console: Console) -> Calibration:
    """Calibrate on the calibration text."""
    texts = config.calibration_text or (str(calibration_text_path()),)
    batches = _batches(config, texts, tokenizer)
    num_tokens = sum(batch.input_ids.numel() for batch in batches)
    console.print(f"calibrating on {num_tokens} tokens of {', '.join(texts)}", highlight=False, soft_wrap=True)
    with telling(console, "calibrating") as progress:
        return calibrate(model, batches, progress=progress)


def read(path: Path) -> Calibration:
    """A calibration from its file."""
    try:
        return Calibration.from_dict(json.loads(path.read_text()))
    except OSError as err:
        raise DataError(f"calibration {path} cannot be read: {err.strerror}") from err
    except DataError as err:
        raise DataError(f"{path}: {err}") from err
    except ValueError as err:
        raise DataError(f"{path} holds no calibration ({err}): make one with thermoe calibrate") from err


def _fitting(calibration: Calibration, name: str, model: Any) -> Calibration:
    """The calibration, if it is of a model of this family and shape."""
    routers = find_routers(model)
    needed = (routers.model_type, (routers.shape.num_layers, routers.shape.num_experts))
    found = (calibration.model_type, calibration.sensitivity.shape)
    if found != needed:
        raise DataError(
            f"calibration {name} is of a {found[0]} model of {found[1]} (layers, experts), this one is {needed[0]} "
            f"of {needed[1]}: make one with thermoe calibrate"
        )
    return calibration


def _batches(config: RunConfig, texts: Sequence[str], tokenizer: Any) -> list[TextBatch]:
    """Whole blocks of the calibration text; one more token a row than is scored, the last target."""
    blocks = TextBlocks(
        texts,
        tokenizer,
        batch_size=config.batch_size,
        block_size=config.block_size,
        max_tokens=config.calibration_tokens + config.batch_size,
    )
    batches = [blocks.batch(index) for index in range(len(blocks))]
    return [batch for batch in batches if batch.input_ids.shape == batches[0].input_ids.shape]
