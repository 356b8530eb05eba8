"""M3: a decode loop whose step is captured once and replayed while knobs change under it.

Shapes: B sequences, S positions of the prompt, L positions of the cache, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.runtime.sampling import Sampling
from thermoe.runtime.step_graph import StepGraphs

AHEAD = 2
"""Steps that may be on their way to the device: enough that it never waits for the host, few enough that knobs
written now are read three steps later at the latest."""


class StepModel(Protocol):
    """What a decode loop drives: a model with a cache of fixed size for B sequences of up to L positions."""

    def prefill(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Logits (B, V) after a prompt, float32; empties the cache first. Mask: 1 for a token, 0 for padding."""

    def step(self, token_B1: Tensor, position_B1: Tensor, mask_BL: Tensor) -> Tensor:
        """Logits (B, V) after one more token each, float32, at the next position of the cache."""

    def variant(self) -> Hashable:
        """What the host decides about a step; every value has a graph of its own."""

    def identity(self) -> Hashable:
        """Changes when graphs of earlier steps no longer do what a step would do now."""


class DecodeLoop:
    """Decodes B sequences at once, greedily or by sampling, each step a graph on a GPU and plain calls elsewhere.

    Everything a step changes lies in tensors that stay in place: tokens, positions, which rows are live, and the
    tokens so far. The host launches step after step without looking at one; `AHEAD` steps later it learns how many
    rows are live, and stops when none is.

    Args:
        model: What computes the logits.
        batch_size, max_length: B; positions of prompt and new tokens together (L).
        device: Of the model.
        sampling: How tokens are chosen.
        stop_token_ids: A row that chooses one of these has ended.
        pad_token_id: What ended rows are fed and filled with; the first stop token if None.
        graph: Whether to capture the step; None on a GPU only.
        lock: Held while capturing.
        compiled: Whether the model's step runs code of torch.compile.

    Raises:
        ConfigError: Sizes below 1, tokens that are none, or graphs asked for without a GPU.
    """

    def __init__(
        self,
        model: StepModel,
        *,
        batch_size: int,
        max_length: int,
        device: torch.device | str,
        sampling: Sampling | None = None,
        stop_token_ids: Sequence[int] = (),
        pad_token_id: int | None = None,
        graph: bool | None = None,
        lock: AbstractContextManager[Any] | None = None,
        compiled: bool = False,
    ) -> None:
        if not all(isinstance(size, int) and size > 0 for size in (batch_size, max_length)):
            raise ConfigError(f"{batch_size!r} sequences of up to {max_length!r} positions: needed 1 or more of both")
        tokens = (*stop_token_ids, *(() if pad_token_id is None else (pad_token_id,)))
        if not all(isinstance(token, int) and abs(token) < 2**63 for token in tokens):
            raise ConfigError(f"stop and padding tokens {tokens}: needed token ids")
        device = torch.device(device)
        if graph and device.type != "cuda":
            raise ConfigError(f"graph=True on {device.type}: CUDA graphs need a GPU, leave it out to decode without")
        self.model, self.batch_size, self.max_length = model, batch_size, max_length
        self.sampling = Sampling() if sampling is None else sampling
        self.stop_token_ids = tuple(stop_token_ids)
        self.graphs = StepGraphs(
            self._step,
            enabled=device.type == "cuda" if graph is None else graph,
            lock=nullcontext() if lock is None else lock,
            compiled=compiled,
        )
        self._identity: Hashable = None
        pad = pad_token_id if pad_token_id is not None else (*self.stop_token_ids, 0)[0]
        with torch.inference_mode(mode=False):  # else nothing outside inference mode could write to them
            self._stop_ids = torch.tensor(self.stop_token_ids, dtype=torch.long, device=device)
            self._pad = torch.tensor(pad, device=device)
            self._token_B1 = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
            self._position_B1 = torch.zeros_like(self._token_B1)
            self._mask_BL = torch.ones(batch_size, max_length, dtype=torch.long, device=device)
            self._live_B = torch.ones(batch_size, dtype=torch.bool, device=device)
            self._tokens_BL = torch.zeros(batch_size, max_length, dtype=torch.long, device=device)
            self._column_1 = torch.zeros(1, dtype=torch.long, device=device)
            self._num_live = torch.zeros((), dtype=torch.int32, device=device)

    @torch.no_grad()
    def generate(
        self,
        ids_BS: Tensor,
        *,
        mask_BS: Tensor | None = None,
        max_new_tokens: int,
        between_steps: Callable[[int], None] | None = None,
    ) -> Tensor:
        """The prompts and what follows them, like `generate()`: (B, S + new tokens).

        Args:
            ids_BS: (B, S) prompts, padded on the left.
            mask_BS: (B, S) 1 for a token and 0 for padding; None where nothing is padded.
            max_new_tokens: Tokens per row at most; fewer where all rows have ended.
            between_steps: Called with the number of new tokens before each step after the prompt, on the host.

        Raises:
            ConfigError: Prompts that do not fit, or are padded on the right.
            UnsupportedModelError: The step cannot be captured.
        """
        mask_BS = torch.ones_like(ids_BS) if mask_BS is None else mask_BS
        self._check(ids_BS, mask_BS, max_new_tokens)
        identity = self.model.identity()
        if identity != self._identity:
            self.graphs.clear()
            self._identity = identity
        self._begin(ids_BS, mask_BS)
        self._accept(self.model.prefill(ids_BS, mask_BS))
        watch = _LiveRows(self._num_live)
        num_new = 1
        while num_new < max_new_tokens and not watch.all_ended():
            if between_steps is not None:
                between_steps(num_new)
            self.graphs.run(self.model.variant())
            num_new += 1
        first = ids_BS.shape[1]
        new_BN = self._tokens_BL[:, first : first + num_new]
        return torch.cat([ids_BS, new_BN[:, : self._used(new_BN)]], dim=1)

    def _begin(self, ids_BS: Tensor, mask_BS: Tensor) -> None:
        length = ids_BS.shape[1]
        self._mask_BL.fill_(1)  # of what lies ahead the model sees nothing before it is written
        self._mask_BL[:, :length] = mask_BS
        self._position_B1.copy_(mask_BS.sum(dim=1, keepdim=True) - 1)
        self._live_B.fill_(True)
        self._column_1.fill_(length)

    def _step(self) -> None:
        self._accept(self.model.step(self._token_B1, self._position_B1, self._mask_BL))

    def _accept(self, logits_BV: Tensor) -> None:
        """Take in the next token of every row."""
        token_B = torch.where(self._live_B, self.sampling.choose(logits_BV), self._pad)
        if self.stop_token_ids:
            self._live_B.logical_and_(~(token_B.unsqueeze(1) == self._stop_ids).any(dim=1))
        self._num_live.copy_(self._live_B.sum())
        self._token_B1.copy_(token_B.unsqueeze(1))
        self._tokens_BL.index_copy_(1, self._column_1, self._token_B1)
        self._column_1.add_(1)
        self._position_B1.add_(1)

    def _used(self, new_BN: Tensor) -> int:
        """New tokens up to the one with which the last row ended."""
        if not self.stop_token_ids:
            return new_BN.shape[1]
        stops_BN = (new_BN.unsqueeze(-1) == self._stop_ids).any(dim=-1)
        ended_N = stops_BN.cumsum(dim=1).bool().all(dim=0)
        return min(int((~ended_N).sum()) + 1, new_BN.shape[1])

    def _check(self, ids_BS: Tensor, mask_BS: Tensor, max_new_tokens: int) -> None:
        if ids_BS.is_floating_point() or isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
            raise ConfigError(f"prompts of {ids_BS.dtype} and {max_new_tokens!r} new tokens: needed whole numbers")
        if ids_BS.ndim != 2 or ids_BS.shape[0] != self.batch_size or not ids_BS.shape[1] or max_new_tokens < 1:
            raise ConfigError(
                f"prompts of shape {tuple(ids_BS.shape)} and {max_new_tokens} new tokens: this loop needs "
                f"({self.batch_size}, 1 or more) and 1 or more"
            )
        if ids_BS.shape[1] + max_new_tokens > self.max_length:
            raise ConfigError(
                f"a prompt of {ids_BS.shape[1]} and {max_new_tokens} new tokens: the loop was made for "
                f"{self.max_length} positions"
            )
        if mask_BS.shape != ids_BS.shape:
            raise ConfigError(f"a mask of shape {tuple(mask_BS.shape)} for prompts of {tuple(ids_BS.shape)}")
        if mask_BS.is_complex() or not bool(((mask_BS == 0) | (mask_BS == 1)).all()):
            raise ConfigError(
                f"a mask of {mask_BS.dtype} with other values than 0 and 1: give 1 for a token, 0 for padding"
            )
        if not bool((mask_BS[:, 1:] >= mask_BS[:, :-1]).all() and mask_BS[:, -1].all()):
            raise ConfigError("a prompt is padded on the right or within: pad on the left (padding_side='left')")


class _LiveRows:
    """How many rows are live, as the host learns of it without holding up the device."""

    def __init__(self, num_live: Tensor) -> None:
        self._num_live = num_live
        self._on_gpu = num_live.is_cuda
        self._flying: deque[tuple[Any, Tensor]] = deque()

    def all_ended(self) -> bool:
        """Whether all rows had ended `AHEAD` steps ago; on a CPU, now. Called once before each step."""
        if not self._on_gpu:
            return int(self._num_live) == 0
        copied = torch.empty((), dtype=self._num_live.dtype, pin_memory=True)
        copied.copy_(self._num_live, non_blocking=True)
        event = torch.cuda.Event(blocking=True)
        event.record()
        self._flying.append((event, copied))
        if len(self._flying) <= AHEAD:
            return False
        event, copied = self._flying.popleft()
        event.synchronize()
        return int(copied) == 0
