"""Runs blocks of text through a Hugging Face model: teacher-forced in step, whole prompts, or generation.

B rows, S positions of a block, C positions of one forward, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from thermoe.experiments.forwards import Forward, LastForward, Stopwatch, Watcher
from thermoe.experiments.routing_clock import RoutingClock
from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.experts_quantised import QuantisedExperts, quantise_experts
from thermoe.integrations.hooks import RouterHooks
from thermoe.types import RoutingKnobs, RoutingStatistics
from thermoe.workloads import Batch, TextBatch, TextMode

_MOST_LOGITS = 1 << 24  # of one forward: 64 MiB in float32


class TextRunner:
    """One attached model; the workload of a batch decides how it is run.

    Args:
        model: A causal language model of a supported family, in eval mode.

    Raises:
        UnsupportedModelError: The model has no experts or cannot be watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self._clock = RoutingClock()
        self._clock.open(model)
        self.hooks = RouterHooks(model, scope=UnionScope.POSITIONS)
        self._clock.shut(model)
        self._knobs: RoutingKnobs | None = None
        self.shape = self.hooks.shape
        self.device = self.hooks.device
        # float32 is for exact figures, not for serving: it is priced as the bfloat16 that it stands for.
        self.bits = min(8.0 * next(model.parameters()).element_size(), 16.0)
        self._quantised: QuantisedExperts | None = None
        self._stopwatch = Stopwatch(self.device)

    def quantise(self, held_as: str, progress: Callable[[str], None]) -> None:
        """Compute with a quantised copy of the experts, at whose precision steps are priced, until `close`."""
        self._quantised = quantise_experts(self.model, held_as, progress=progress)
        self.bits = self._quantised.bits

    def steps_of(self, batch: Batch) -> tuple[int, int]:
        """Steps that this batch will take, and tokens of one step."""
        assert isinstance(batch, TextBatch)
        rows, positions = batch.input_ids.shape
        if batch.mode is TextMode.TEACHER_FORCED:
            return positions, rows
        return (1, rows * positions) if batch.mode is TextMode.PREFILL else (batch.new_tokens, rows)

    def run(self, batch: Batch, watcher: Watcher, positions: int | None) -> None:
        """Run one block; the watcher hears of every forward."""
        assert isinstance(batch, TextBatch)
        with torch.inference_mode():
            match batch.mode:
                case TextMode.TEACHER_FORCED:
                    self._teacher_forced(batch, watcher, positions)
                case TextMode.PREFILL:
                    self._prefill(batch, watcher)
                case TextMode.GENERATION:
                    self._generate(batch, watcher)

    def set_knobs(self, knobs: RoutingKnobs | None) -> None:
        """Knobs from the next forward on."""
        self._knobs = knobs
        self.hooks.set_knobs(knobs)

    def drain(self) -> RoutingStatistics:
        """Counters since the last call."""
        return self.hooks.counters.drain()

    def routing_s(self) -> float:
        """Host time spent in the routing hooks since the last call [s]."""
        return self._clock.take()

    def close(self) -> None:
        """Take all hooks and quantised experts out."""
        if self._quantised is not None:
            self._quantised.remove()
        self.hooks.remove()
        self._clock.remove()

    def _teacher_forced(self, batch: TextBatch, watcher: Watcher, positions: int | None) -> None:
        self.hooks.context.scope = UnionScope.POSITIONS
        inputs, targets = batch.input_ids.to(self.device), batch.target_ids.to(self.device)
        rows, length = inputs.shape
        most = max(_MOST_LOGITS // (rows * self._vocabulary), 1)
        chunk = min(length, most if positions is None else min(positions, most))
        cache = DynamicCache(config=self.model.config)
        for begin in range(0, length, chunk):
            part = slice(begin, min(begin + chunk, length))
            watcher.before_forward()
            stop = self._stopwatch.start()
            logits = self.model(input_ids=inputs[:, part], past_key_values=cache, use_cache=True).logits
            latency_s = stop()
            watcher.after_forward(
                Forward(
                    num_steps=part.stop - part.start,
                    tokens_per_step=rows,
                    results_per_step=rows,
                    last=self._last(),
                    nll_C=nll_by_position(logits, targets[:, part]),
                    latency_s=latency_s,
                )
            )

    def _prefill(self, batch: TextBatch, watcher: Watcher) -> None:
        inputs, targets = batch.input_ids.to(self.device), batch.target_ids.to(self.device)
        watcher.before_forward()
        self._enter_prompt()
        stop = self._stopwatch.start()
        logits = self.model(input_ids=inputs, use_cache=False).logits
        latency_s = stop()
        self._leave_prompt()
        watcher.after_forward(
            Forward(
                num_steps=1,
                tokens_per_step=inputs.numel(),
                results_per_step=inputs.numel(),
                last=self._last(),
                nll_C=nll_by_position(logits, targets).sum(keepdim=True, dim=0),
                latency_s=latency_s,
            )
        )

    def _generate(self, batch: TextBatch, watcher: Watcher) -> None:
        prompt = batch.input_ids.to(self.device)
        rows = prompt.shape[0]
        stops: list[Any] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            watcher.before_forward()
            if self._is_prompt(kwargs):
                self._enter_prompt()
            stops.append(self._stopwatch.start())

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            latency_s = stops.pop()()
            positions = self.hooks.context.positions
            self._leave_prompt()
            watcher.after_forward(
                Forward(
                    num_steps=1,
                    tokens_per_step=rows * positions,
                    results_per_step=rows,
                    last=self._last(),
                    nll_C=None,
                    latency_s=latency_s,
                )
            )

        handles = [
            self.model.register_forward_pre_hook(before, with_kwargs=True),
            self.model.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=batch.new_tokens,
                max_new_tokens=batch.new_tokens,
                pad_token_id=self._padding(),
            )
        finally:
            for handle in handles:
                handle.remove()

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    def _padding(self) -> int:
        """A token to pad with, which exact lengths never need; naming it keeps generate() quiet."""
        known = getattr(self.model.generation_config, "pad_token_id", None)
        return int(known) if known is not None else 0

    def _last(self) -> LastForward:
        return dict(self.hooks.counters.last)

    @staticmethod
    def _is_prompt(arguments: dict[str, Any]) -> bool:
        return bool(arguments["input_ids"].shape[1] > 1)

    def _enter_prompt(self) -> None:
        """A prompt is read as one batch; union policies are for decoding and leave it alone."""
        self.hooks.context.scope = UnionScope.FORWARD
        if self._knobs is not None:
            self.hooks.set_knobs(replace(self._knobs, union=False))

    def _leave_prompt(self) -> None:
        self.hooks.context.scope = UnionScope.DECODE
        self.hooks.set_knobs(self._knobs)


def nll_by_position(logits_BCV: Tensor, targets_BC: Tensor) -> Tensor:
    """(C,) negative log-likelihood in float32, summed over the rows [nat]."""
    flat = nn.functional.cross_entropy(logits_BCV.float().flatten(0, 1), targets_BC.flatten(), reduction="none")
    return flat.view(targets_BC.shape).sum(0)
