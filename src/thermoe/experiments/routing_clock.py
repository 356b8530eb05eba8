"""Host time inside routing hooks: one hook before them notes the clock, one after them reads it."""

from time import perf_counter
from typing import Any

from torch import nn

from thermoe.integrations.inspect import find_routers


class RoutingClock:
    """Sums the host time between its two hooks on every router.

    Hooks of a module run in the order in which they were registered: `open` before the hooks that
    are to be clocked are put in, `shut` after. On a GPU this is the time to launch, not to compute.
    """

    def __init__(self) -> None:
        self._begin_s = 0.0
        self._total_s = 0.0
        self._handles: list[Any] = []

    def open(self, model: nn.Module) -> None:
        """Note the time before the hooks registered from now on."""
        self._register(model, self._note)

    def shut(self, model: nn.Module) -> None:
        """Add the time that the hooks registered since `open` took."""
        self._register(model, self._add)

    def take(self) -> float:
        """Seconds since the last call."""
        total_s, self._total_s = self._total_s, 0.0
        return total_s

    def remove(self) -> None:
        """Take both hooks out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _register(self, model: nn.Module, hook: Any) -> None:
        self._handles += [router.register_forward_hook(hook) for router in find_routers(model).modules]

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        self._begin_s = perf_counter()

    def _add(self, module: nn.Module, args: Any, output: Any) -> None:
        self._total_s += perf_counter() - self._begin_s
