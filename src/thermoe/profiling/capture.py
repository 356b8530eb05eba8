"""CUDA graphs that are captured undisturbed, and that leave nothing behind when capture fails."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from thermoe.errors import CostError

WARM_UP_RUNS = 2


class CaptureError(CostError):
    """A CUDA graph could not be captured; torch's allocator in this process is not to be trusted any more."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now, then not before the block ends.

    A graph that is destroyed while another is being captured invalidates the capture, and an older
    graph may hang on a reference cycle that the collector happens to find at that moment. Since
    2.9 torch itself does not collect before a capture.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def capture_graph(work: Callable[[], None], warm_up: Callable[[], None] | None = None) -> torch.cuda.CUDAGraph:
    """Warm up on a side stream and capture one execution of `work`.

    Tensors that `work` makes and keeps belong to the graph's memory and change at every replay.

    Args:
        work: What the graph holds.
        warm_up: What is run before, where a part of `work` is enough; all of it if None.

    Raises:
        CaptureError: The capture failed; the stream that was current before is current again.
    """
    outside = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(outside)
    with torch.cuda.stream(side):  # what is made on first use must not be made inside the capture
        for _ in range(WARM_UP_RUNS):
            (warm_up or work)()
    outside.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with no_garbage_collection():
        try:
            with torch.cuda.graph(graph):
                work()
        except RuntimeError as err:
            torch.cuda.set_stream(outside)  # torch stays on its capture stream when ending the capture fails
            cause = err.__context__ or err  # ending a broken capture says less than what broke it
            raise CaptureError(f"the CUDA graph was not captured ({type(cause).__name__}: {cause})") from err
    return graph
