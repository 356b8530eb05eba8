"""One step of a decode loop as CUDA graphs: captured once, replayed while what it reads in device memory changes."""

import gc
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from thermoe.errors import UnsupportedModelError

_WAITING_TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Replay(Protocol):
    """A captured step."""

    def replay(self) -> None:
        """Run it once more, in the order of the current stream."""


class StepGraphs:
    """Runs a step: the first time of a variant as it is, from the second time on as a graph of that variant.

    The first run makes what is made on first use (kernels, workspaces, caches), and is refused where the host would
    have to look at a result to know what to launch next.

    Args:
        step: Reads and writes tensors that stay where they are; returns nothing.
        enabled: Whether graphs are captured at all; otherwise every step runs as it is.
        lock: Held while capturing, so that no other thread uses the device meanwhile.
        compiled: Whether the step runs code of torch.compile, which the check on the first run would switch off.
    """

    def __init__(
        self,
        step: Callable[[], None],
        *,
        enabled: bool,
        lock: AbstractContextManager[Any],
        compiled: bool = False,
    ) -> None:
        self.enabled = enabled
        self._step, self._lock, self._checks = step, lock, not compiled
        self._warm: set[Hashable] = set()
        self._graphs: dict[Hashable, Replay] = {}

    def run(self, variant: Hashable = None) -> None:
        """One step; `variant` names everything that the host decides about it.

        Raises:
            UnsupportedModelError: The step cannot be captured.
        """
        if not self.enabled:
            self._step()
        elif variant in self._graphs:
            self._graphs[variant].replay()
        elif variant in self._warm:
            with self._lock:
                graph = capture_step(self._step)
            self._graphs[variant] = graph
            graph.replay()
        else:
            self._warm_up()
            self._warm.add(variant)

    def clear(self) -> None:
        """Forget all graphs: the step is another one from now on."""
        self._warm.clear()
        self._graphs.clear()

    @property
    def num_graphs(self) -> int:
        """Graphs captured."""
        return len(self._graphs)

    def _warm_up(self) -> None:
        if self._checks:
            with NoHostDecisions():  # type: ignore[no-untyped-call]
                self._step()
        else:
            self._step()


class NoHostDecisions(TorchDispatchMode):
    """Refuses operations whose result the host needs before it can go on: a captured graph has no host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _waits(func, args):
            raise UnsupportedModelError(
                f"one decode step cannot be captured: {_module_running()} calls {func}, and what to launch next "
                "depends on its result: choose experts that do without (thermoe, grouped_mm), or graph=False"
            )
        return func(*args, **(kwargs or {}))


def capture_step(step: Callable[[], None]) -> Replay:
    """Capture one execution, which does not run yet.

    Raises:
        UnsupportedModelError: It cannot be captured; the stream that was current before is current again.
    """
    outside = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    with _no_garbage_collection():
        try:
            # Relaxed: a kernel that is loaded only now may take memory, which stricter modes forbid.
            with torch.cuda.graph(graph, capture_error_mode="relaxed"):
                step()
        except RuntimeError as err:
            torch.cuda.set_stream(outside)  # torch stays on its capture stream when ending the capture fails
            cause = err.__context__ or err  # ending a broken capture says less than what broke it
            raise UnsupportedModelError(
                f"one decode step was not captured ({type(cause).__name__}: {str(cause).splitlines()[0]}): "
                "decode with graph=False"
            ) from err
    return graph


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A graph that is destroyed while another is captured invalidates the capture: collect before, not during."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _waits(func: Any, args: tuple[Any, ...]) -> bool:
    if func in _INDEXING:  # by integers it is like any other operation, by truth values it counts them first
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return not _WAITING_TAGS.isdisjoint(func.tags)


def _module_running() -> str:
    """Class of the innermost module on the call stack."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return type(owner).__name__
        frame = frame.f_back
    return "the model"
