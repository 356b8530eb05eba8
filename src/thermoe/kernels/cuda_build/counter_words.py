"""Words in device memory that begin at zero and that a kernel leaves ready for its next launch."""

import ctypes
from threading import Lock

from thermoe.kernels.cuda_build.driver import check, libcuda, outside_captures

_NON_BLOCKING, _CAPTURING = 1, 1
_counters: dict[tuple[str, int, int, int], int] = {}
_lock = Lock()


def counters(owner: str, device: int, stream: int, words: int) -> int:
    """Pointer to zeroed words for launches that cannot overlap: those of one stream, or of one capture.

    Args:
        owner: the kernel they belong to; it always asks for as many.
        device: whose context is current.
        stream: that the launch goes to.
        words: of 4 bytes.

    Raises:
        CudaUnavailableError: the driver refuses.
    """
    status, capture = ctypes.c_int(), ctypes.c_uint64()
    asked = libcuda().cuStreamGetCaptureInfo_v2(
        ctypes.c_void_p(stream), ctypes.byref(status), ctypes.byref(capture), None, None, None
    )
    check(asked, "asking whether the stream is captured")
    key = (owner, device, stream, capture.value if status.value == _CAPTURING else 0)
    with _lock:
        if key not in _counters:
            _counters[key] = _zeroed_words(words)
        return _counters[key]


def _zeroed_words(count: int) -> int:
    pointer, aside = ctypes.c_void_p(), ctypes.c_void_p()
    with outside_captures():
        check(libcuda().cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(4 * count)), "taking memory for counters")
        check(libcuda().cuStreamCreate(ctypes.byref(aside), _NON_BLOCKING), "making a stream")
        status = libcuda().cuMemsetD32Async(pointer, 0, ctypes.c_size_t(count), aside)
        status = status or libcuda().cuStreamSynchronize(aside)
        libcuda().cuStreamDestroy_v2(aside)
        check(status, "clearing counters")
    return int(pointer.value or 0)
