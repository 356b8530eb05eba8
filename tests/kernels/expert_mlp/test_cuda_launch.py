"""How a kernel is launched: what the driver reads of the structures that stand for its own; a library is the driver."""

import ctypes
import shutil
import subprocess

import pytest

from thermoe.kernels.cuda_build import CudaUnavailableError, Kernel, driver

DRIVER = r"""
#include <string.h>
typedef struct { int id; char pad[4]; union { char pad[64]; int cooperative; void* pointer; } value; } Attribute;
typedef struct {
  unsigned gridX, gridY, gridZ, blockX, blockY, blockZ, shared;
  void* stream;
  Attribute* attributes;
  unsigned count;
} Config;
int seen[16];
int cuThreadExchangeStreamCaptureMode(int* mode) { return 0; }
int cuModuleLoadData(void** module, const void* code) { *module = (void*)8; return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) { *function = (void*)16; return 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuOccupancyMaxActiveClusters(int* found, void* function, const Config* c) {
  const int* size = &c->attributes[0].value.cooperative;
  const int asked = c->count == 1 && c->attributes[0].id == 4;
  *found = asked ? 132 / (size[0] * size[1] * size[2]) + (int)(c->blockX + c->shared) : -1;
  return 0;
}
int cuGetErrorString(int status, const char** text) { *text = "no such luck"; return 0; }
int cuLaunchKernelEx(const Config* c, void* function, void** parameters, void** extra) {
  const unsigned numbers[] = {c->gridX, c->gridY, c->gridZ, c->blockX, c->blockY, c->blockZ, c->shared, c->count};
  memcpy(seen, numbers, sizeof numbers);
  seen[8] = (int)(long)c->stream, seen[9] = (int)(long)function, seen[10] = *(int*)parameters[0], seen[11] = extra != 0;
  seen[12] = seen[13] = 0;
  for (unsigned i = 0; i < c->count; ++i)
    if (c->attributes[i].value.cooperative == 1) seen[12 + i] = c->attributes[i].id;
  return seen[10] < 0 ? 999 : 0;
}
"""

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the stand-in with")


class Word(ctypes.Structure):
    _fields_ = (("value", ctypes.c_int32),)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("driver") / "driver.so"
    command = ["g++", "-x", "c", "-fPIC", "-shared", "-w", "-", "-o", str(built)]
    subprocess.run(command, input=DRIVER.encode(), check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture
def kernel(library, monkeypatch) -> Kernel:
    monkeypatch.setattr(driver, "libcuda", lambda: library)
    return Kernel(b"code", "some", shared_bytes=4096)


FLAGS = {
    "plain": ({}, []),
    "resident": ({"resident": True}, [2]),
    "overlapping": ({"overlaps": True}, [6]),
    "both": ({"resident": True, "overlaps": True}, [2, 6]),
}


@pytest.mark.parametrize(("flags", "attributes"), FLAGS.values(), ids=FLAGS.keys())
def test_the_driver_reads_what_was_asked_for(kernel, library, flags, attributes):
    kernel.launch(Word(7), blocks=5, threads=96, stream=48, **flags)

    seen = list((ctypes.c_int * 16).in_dll(library, "seen"))
    assert seen[:7] == [5, 1, 1, 96, 1, 1, 4096]
    assert seen[7] == len(attributes)
    assert seen[8:12] == [48, 16, 7, 0]
    assert seen[12 : 12 + len(attributes)] == attributes


def test_less_shared_memory_than_the_kernel_was_given(kernel, library):
    kernel.launch(Word(7), blocks=1, threads=32, stream=0, shared_bytes=1024)
    assert (ctypes.c_int * 16).in_dll(library, "seen")[6] == 1024


def test_the_number_of_clusters_is_asked_for_with_their_shape(kernel):
    assert kernel.clusters_at_once(4, 96) == 132 // (4 * 1 * 1) + 96 + 4096


def test_a_refused_launch_says_what_the_driver_says(kernel):
    with pytest.raises(CudaUnavailableError, match="launching some: the CUDA driver says 'no such luck'"):
        kernel.launch(Word(-1), blocks=1, threads=32, stream=0)
