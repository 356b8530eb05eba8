"""Hands out workloads by name and seed, from any batch on."""

from collections.abc import Callable, Iterator

from thermoe.errors import ConfigError
from thermoe.workloads.batches import Batch, Workload
from thermoe.workloads.generators import TENSOR_WORKLOADS, WorkloadGenerator

WorkloadFactory = Callable[[int], Workload]


class DataLoaderManager:
    """Workloads by name; each is built once per seed, when it is first asked for.

    A text workload is the same under every seed: its batches are fixed by the text.
    """

    def __init__(self) -> None:
        self._factories: dict[str, WorkloadFactory] = {}
        self._built: dict[tuple[str, int], Workload] = {}

    @classmethod
    def of_tensors(cls, d_model: int, num_batches: int, num_tokens: int | None = None) -> "DataLoaderManager":
        """The four tensor workloads for a layer of width `d_model` (arguments as in `WorkloadGenerator`)."""

        def factory(name: str) -> WorkloadFactory:
            return lambda seed: WorkloadGenerator(
                name, d_model, num_batches=num_batches, seed=seed, num_tokens=num_tokens
            )

        manager = cls()
        for name in TENSOR_WORKLOADS:
            manager.register(name, factory(name))
        return manager

    @property
    def names(self) -> list[str]:
        """Names that can be asked for, in the order they were registered."""
        return list(self._factories)

    def register(self, name: str, factory: WorkloadFactory) -> None:
        """Adds a workload: `factory(seed)` builds it. A name can be taken once."""
        if name in self._factories:
            raise ConfigError(f"workload {name!r} is registered already: choose another name")
        self._factories[name] = factory

    def workload(self, name: str, seed: int = 0) -> Workload:
        """The workload itself; `ConfigError` for an unknown name."""
        if name not in self._factories:
            raise ConfigError(f"unknown workload {name!r}: choose from {', '.join(self._factories) or 'none'}")
        if (name, seed) not in self._built:
            self._built[name, seed] = self._factories[name](seed)
        return self._built[name, seed]

    def batches(self, name: str, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, … to the end, the same as if all before had been drawn."""
        workload = self.workload(name, seed)
        return (workload.batch(index) for index in range(start, len(workload)))
