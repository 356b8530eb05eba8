"""Counters of CUDA kernels, with a stand-in for the driver's library: who shares them, and what a refusal says."""

import itertools

import pytest

from thermoe.kernels.cuda_build import CudaUnavailableError, counters
from thermoe.kernels.cuda_build import driver as driver_module


class StandIn:
    """Hands out addresses; `capture` is the capture under way, 0 for none."""

    def __init__(self) -> None:
        self.capture, self.memory_status, self.cleared = 0, 0, []
        self._addresses = itertools.count(4096, 4096)

    def cuStreamGetCaptureInfo_v2(self, stream, status, capture, *rest):  # noqa: N802 - the name in the driver
        status._obj.value, capture._obj.value = int(self.capture > 0), self.capture
        return 0

    def cuMemAlloc_v2(self, pointer, size):  # noqa: N802 - the name in the driver
        pointer._obj.value = next(self._addresses)
        return self.memory_status

    def cuMemsetD32Async(self, pointer, value, count, stream):  # noqa: N802 - the name in the driver
        self.cleared.append((pointer.value, value, count.value))
        return 0

    def cuGetErrorString(self, status, text):  # noqa: N802 - the name in the driver
        text._obj.value = b"out of memory"

    def cuStreamCreate(self, *rest):  # noqa: N802 - the name in the driver
        return 0

    cuStreamSynchronize = cuStreamDestroy_v2 = cuThreadExchangeStreamCaptureMode = cuStreamCreate


@pytest.fixture
def library(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(driver_module, "libcuda", lambda: stand_in)
    monkeypatch.setitem(counters.__globals__, "libcuda", lambda: stand_in)
    monkeypatch.setitem(counters.__globals__, "_counters", {})
    return stand_in


def test_each_kernel_stream_and_capture_has_words_of_its_own_that_begin_at_zero(library):
    first = counters("decode", 0, 7, 100)

    assert library.cleared == [(first, 0, 100)]
    assert counters("decode", 0, 7, 100) == first
    others = {counters("grouped", 0, 7, 50), counters("decode", 1, 7, 100), counters("decode", 0, 8, 100)}
    library.capture = 3
    others.add(counters("decode", 0, 7, 100))
    assert len(others | {first}) == 5
    assert len(library.cleared) == 5


def test_a_refusal_of_the_driver_says_what_was_wanted(library):
    library.memory_status = 2

    with pytest.raises(CudaUnavailableError, match="taking memory for counters"):
        counters("decode", 0, 7, 100)
