"""Workloads and runners of a run: what is computed, and on which model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thermoe.errors import ConfigError
from thermoe.experiments.block_runner import BlockRunner
from thermoe.experiments.config import RunConfig
from thermoe.experiments.forwards import Runner
from thermoe.experiments.models import check_device, load_model
from thermoe.experiments.text_runner import TextRunner
from thermoe.integrations.inspect import find_routers
from thermoe.types import MoEShape
from thermoe.workloads import Batch, TextBlocks, TextMode, Workload, WorkloadGenerator, read_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a run computes.

    Attributes:
        shape: Sizes of the model's MoE layers.
        workloads: Names in order, with what builds each for a seed.
        runner: What computes the batches of one seed; made, and attached to the model, when first asked for.
        made: Runners made so far.
        model, tokenizer: The Hugging Face model, for calibration; None for the block.
    """

    shape: MoEShape
    workloads: dict[str, Callable[[int], Workload]]
    runner: Callable[[int], Runner]
    made: dict[int, Runner]
    model: Any = None
    tokenizer: Any = None

    def quantise(self, held_as: str, progress: Callable[[str], None]) -> None:
        """Compute with a quantised copy of the experts of the Hugging Face model, until `close`.

        Raises:
            UnsupportedModelError: Experts that the kernels do not compute.
        """
        runner = self.runner(0)
        assert isinstance(runner, TextRunner)
        runner.quantise(held_as, progress)

    def close(self) -> None:
        """Leave the model as it was found."""
        for runner in self.made.values():
            runner.close()


def build_task(config: RunConfig) -> Task:
    """The task of a run.

    Raises:
        ThermoeError: A model or text that cannot be used.
    """
    check_device(config.device)
    return _text_task(config) if config.is_text else _tensor_task(config)


def check_texts(paths: tuple[str, ...]) -> None:
    """Refuse texts that cannot be read, before a model is loaded."""
    for path in paths:
        read_text(Path(path))


def _text_task(config: RunConfig) -> Task:
    check_texts((*config.text, *config.calibration_text))
    assert config.model is not None
    model, tokenizer = load_model(config.model, config.device, config.dtype)
    shape = find_routers(model).shape
    workloads: dict[str, Callable[[int], Workload]] = {}
    for mode in config.resolved_workloads:
        by_text = {Path(path).stem: _blocks(config, path, TextMode(mode), tokenizer) for path in config.text}
        if len(by_text) < len(config.text):
            raise ConfigError("two texts have the same name: rename one, workloads are named after them")
        if config.join_texts:
            workloads[mode] = _same_for_all_seeds(JoinedBlocks(list(by_text.values())))
        else:
            workloads |= {f"{mode}:{stem}": _same_for_all_seeds(blocks) for stem, blocks in by_text.items()}
    made: dict[int, Runner] = {}

    def runner(seed: int) -> Runner:
        if 0 not in made:  # one model serves all seeds
            made[0] = TextRunner(model)
        return made[0]

    return Task(shape=shape, workloads=workloads, runner=runner, made=made, model=model, tokenizer=tokenizer)


def _blocks(config: RunConfig, path: str, mode: TextMode, tokenizer: Any) -> TextBlocks:
    return TextBlocks(
        [path],
        tokenizer,
        batch_size=config.batch_size,
        block_size=config.block_size,
        max_tokens=config.max_tokens,
        mode=mode,
        new_tokens=config.new_tokens if mode is TextMode.GENERATION else 0,
    )


class JoinedBlocks:
    """The blocks of several texts, one text after the other, as one workload."""

    def __init__(self, texts: list[TextBlocks]) -> None:
        self._places = [(text, index) for text in texts for index in range(len(text))]

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, index: int) -> Batch:
        """Batch number `index` of the whole."""
        text, place = self._places[index]
        return replace(text.batch(place), index=index)


def _same_for_all_seeds(blocks: Workload) -> Callable[[int], Workload]:
    return lambda seed: blocks


def _tensor_task(config: RunConfig) -> Task:
    shape = MoEShape(
        num_layers=config.num_layers,
        hidden_size=config.d_model,
        inter_size=config.inter_size,
        num_experts=config.num_experts,
        top_k=config.top_k,
    )

    def generator(name: str) -> Callable[[int], Workload]:
        return lambda seed: WorkloadGenerator(name, config.d_model, num_batches=config.samples_per_workload, seed=seed)

    made: dict[int, Runner] = {}

    def runner(seed: int) -> Runner:
        if seed not in made:
            made[seed] = BlockRunner(shape, seed=seed, device=config.device, expert_type=config.expert_type)
        return made[seed]

    workloads = {name: generator(name) for name in config.resolved_workloads}
    return Task(shape=shape, workloads=workloads, runner=runner, made=made)
