"""Building CUDA C++ on the spot, with a stand-in for nvcc, and what the decode kernel refuses; no GPU needed."""

import math
import sys
from pathlib import Path

import pytest
import torch
from mlp_cases import Case, drawn

from thermoe.errors import ConfigError
from thermoe.kernels import cuda_build
from thermoe.kernels.cuda_build import CudaUnavailableError, compile_source, compiler, device_files
from thermoe.kernels.expert_mlp import Activation, DenseMatrices, ExpertWeights, Fp8Matrices, PlaneMatrices
from thermoe.kernels.expert_mlp import cuda as decode
from thermoe.kernels.expert_mlp.cuda import decode as decode_module
from thermoe.kernels.expert_mlp.cuda.boxes import described
from thermoe.kernels.expert_mlp.cuda.geometry import Geometry, geometry

BF16 = torch.bfloat16
NVCC = f"""#!{sys.executable}
import pathlib, sys
out, source = sys.argv[-2], pathlib.Path(sys.argv[-1]).read_text()
if "bad" in source:
    sys.exit("main.cu(1): error: what is bad?\\n1 error detected")
count = pathlib.Path(__file__).with_name("count")
count.write_text(count.read_text() + "x" if count.exists() else "x")
pathlib.Path(out).write_bytes(b"\\x7fELF" + source.encode() + " ".join(sys.argv[1:-3]).encode())
"""


@pytest.fixture
def nvcc(tmp_path, monkeypatch) -> Path:
    """A compiler that counts its runs; no other is found, and the cache is empty."""
    monkeypatch.setattr(compiler, "_runtime_compiler", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text(NVCC)
    program.chmod(0o755)
    return program


def runs(nvcc: Path) -> int:
    count = nvcc.with_name("count")
    return len(count.read_text()) if count.exists() else 0


def test_a_source_is_compiled_once(nvcc):
    first = compile_source("good", "some.cu", (9, 0))

    assert compile_source("good", "some.cu", (9, 0)) == first
    assert runs(nvcc) == 1
    assert b"--gpu-architecture=sm_90" in first


def test_another_source_architecture_or_included_file_is_compiled_again(nvcc, tmp_path):
    included = tmp_path / "part.cuh"
    included.write_text("one")
    for source, capability in (("good", (9, 0)), ("better", (9, 0)), ("good", (10, 0))):
        compile_source(source, "some.cu", capability, include=tmp_path)
    included.write_text("two")
    compile_source("good", "some.cu", (9, 0), include=tmp_path)

    assert runs(nvcc) == 4


def test_a_changed_file_of_the_device_is_compiled_again(nvcc, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "_COMMON", tmp_path)
    (tmp_path / "device").mkdir()
    for text in ("one", "two", "two"):
        (tmp_path / "device" / "part.cuh").write_text(text)
        code = compile_source("good", "some.cu", (9, 0))

    assert runs(nvcc) == 2
    assert f"--include-path={tmp_path}".encode() in code


def test_every_file_of_the_device_is_there():
    included = device_files("arithmetic", "inboxes")

    assert included == '#include "device/arithmetic.cuh"\n#include "device/inboxes.cuh"\n'
    assert all((compiler._COMMON / line.split('"')[1]).is_file() for line in included.splitlines())


def test_what_was_kept_and_is_no_machine_code_is_made_again(nvcc, tmp_path):
    first = compile_source("good", "some.cu", (9, 0))
    (kept,) = (tmp_path / "cache").rglob("*.cubin")
    kept.write_bytes(b"")

    assert compile_source("good", "some.cu", (9, 0)) == first
    assert runs(nvcc) == 2


def test_a_cache_that_cannot_be_written_costs_a_build_only(nvcc, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    assert compile_source("good", "some.cu", (9, 0)) == compile_source("good", "some.cu", (9, 0))
    assert runs(nvcc) == 2


def test_a_refused_source_is_told_in_one_line(nvcc):
    with pytest.raises(CudaUnavailableError, match=r"nvcc refuses some.cu: main.cu\(1\): error: what is bad\?$"):
        compile_source("bad", "some.cu", (9, 0))


def test_no_compiler_is_told_with_what_to_do(nvcc, monkeypatch):
    monkeypatch.setattr(compiler, "_nvcc", lambda: None)

    assert not cuda_build.is_available.__wrapped__()
    with pytest.raises(CudaUnavailableError, match="install one, or use the Triton kernels"):
        compile_source("good", "some.cu", (9, 0))


def test_a_kernel_that_cannot_be_built_is_refused_with_the_reason(nvcc, monkeypatch):
    monkeypatch.setattr(compiler, "_nvcc", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    decode_module._kernel_or_refusal.cache_clear()

    kernel, reason = decode_module._kernel_or_refusal("Bf16", 8, 0)

    assert kernel is None
    assert "no CUDA compiler" in reason
    decode_module._kernel_or_refusal.cache_clear()


def experts(**changes):
    return drawn(Case(**{"dtype": BF16, "d_model": 256, "inter_size": 128} | changes))[3]


def changed(value, **changes):
    names = value.__dataclass_fields__
    return type(value)(**{name: getattr(value, name) for name in names} | changes)


def shifted(layer, name: str):
    """The same values, 4 bytes past a multiple of 16."""
    values = getattr(layer.fc2, name)
    moved = torch.empty(values.numel() + 16, dtype=values.dtype)
    start = (-moved.data_ptr() % 16 + 4) // values.element_size()
    moved = moved[start : start + values.numel()].view(values.shape).copy_(values)
    return changed(layer, fc2=changed(layer.fc2, **{name: moved}))


REFUSED = {
    "scales that the copy engine cannot reach": (shifted(experts(format="int4"), "scale_PEGN"), "a multiple of 16"),
    "zeros that the copy engine cannot reach": (shifted(experts(format="int4-zeros"), "zero_PEGN"), "a multiple of 16"),
    "an activation without gates": (experts(activation=Activation.RELU), "gated"),
    "a width of part of a tile": (experts(d_model=272), "model width in 32s"),
    "weights of float32": (experts(dtype=torch.float32), "takes bf16"),
    "groups of 256": (experts(format="int4", d_model=512, inter_size=512, group_size=256), "takes 32, 64 and 128"),
    "a token that does not fit": (experts(d_model=98304, inter_size=16, experts=1), "does not fit"),
    "biases of bf16": (changed(experts(), bias1_EN=torch.zeros(5, 256, dtype=BF16)), "biases of torch.bfloat16"),
    "bits of int64": (changed(experts(format="bank8"), bits_E=torch.zeros(5, dtype=torch.int64)), "bits of"),
}


@pytest.mark.parametrize(("layer", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_layer_that_does_not_fit_is_refused_with_the_reason(layer, reason):
    assert reason in geometry(layer)


def test_calls_that_do_not_fit_are_refused_with_the_reason():
    assert "bf16" in decode.refusal(experts(), 4, 2, torch.float16)
    assert "512 slots" in decode.refusal(experts(), 257, 2, BF16)
    assert "runs on a GPU" in decode.refusal(experts(), 4, 2, BF16)
    x_TD, ids_TK, weights_TK, layer = drawn(Case(dtype=BF16, activation=Activation.RELU))
    with pytest.raises(ConfigError, match="cannot take activation relu"):
        decode.run(x_TD, ids_TK, weights_TK, layer, torch.empty_like(x_TD))


def test_what_the_kernel_cannot_read_as_it_lies_is_copied():
    buffer = torch.arange(129).to(BF16)
    aligned_TD, shifted_TD = buffer[:128].view(4, 32), buffer[1:].view(4, 32)
    narrow_TK, half_TK = torch.rand(4, 2).to(BF16), torch.rand(4, 2).half()

    kept = decode_module._readable(aligned_TD, narrow_TK, aligned_TD)
    x_TD, weights_TK, out_TD = decode_module._readable(shifted_TD, half_TK, shifted_TD)

    assert all(got is given for got, given in zip(kept, (aligned_TD, narrow_TK, aligned_TD), strict=True))
    assert x_TD.data_ptr() % 16 == 0
    assert torch.equal(x_TD, shifted_TD)
    assert torch.equal(weights_TK, half_TK.float())
    assert out_TD.data_ptr() % 16 == 0
    assert out_TD.shape == shifted_TD.shape


def empty_matrices(format_name: str, rows: int, columns: int):
    """One expert's, of any values."""
    if format_name == "dense":
        return DenseMatrices(weight_ENC=torch.empty(1, rows, columns, dtype=BF16))
    if format_name == "fp8-block":
        scale = torch.empty(1, -(-rows // 128), -(-columns // 128))
        return Fp8Matrices(code_ENC=torch.empty(1, rows, columns, dtype=torch.float8_e4m3fn), scale=scale)
    chunks, scale = -(-columns // 128), torch.empty(3, 1, -(-columns // 32), rows, dtype=torch.float16)
    planes = tuple(torch.empty(1, pieces, rows, 32, dtype=torch.uint8) for pieces in (chunks, chunks, 2 * chunks))
    return PlaneMatrices(planes=planes, scale_PEGN=scale, zero_PEGN=scale, columns=columns, group_size=32)


@pytest.mark.parametrize("format_name", ["dense", "bank8-zeros", "fp8-block"])
@pytest.mark.parametrize("widths", [(32, 16), (288, 80), (2880, 2880), (2048, 1408), (7168, 14336)])
def test_the_copy_engine_takes_the_maps_of_every_width(widths, format_name):
    """The limits of cuTensorMapEncodeTiled, and a tensor that the map has all of and nothing else."""
    D, I = widths  # noqa: E741
    for which, matrices in enumerate((empty_matrices(format_name, 2 * I, D), empty_matrices(format_name, D, I))):
        maps = described(matrices, which)
        for tensor, boxes in filter(None, (*maps.weights, maps.scale, maps.zero)):
            room = boxes.element_bytes
            assert boxes.box[0] * room % 16 == 0
            assert all(1 <= elements <= 256 for elements in boxes.box)
            assert not boxes.swizzled or boxes.box[0] * room <= 128
            for size, pitch in zip(boxes.sizes[:3], boxes.pitches, strict=True):
                room *= size
                assert pitch == room
                assert pitch % 16 == 0
            assert room * boxes.sizes[3] == tensor.nbytes


@pytest.mark.parametrize("warps", [8, 12])
@pytest.mark.parametrize("format_name", ["dense", "bank8-zeros", "fp8-block"])
@pytest.mark.parametrize("widths", [(64, 64), (2048, 768), (4096, 14336), (7168, 2048), (10240, 64), (20480, 64)])
def test_activations_and_a_slot_for_each_warp_fit_in_shared_memory(widths, format_name, warps):
    """Restates layout.cuh: pitch, sums, shares and slots of the widest job, in the 215 KiB it promises."""
    (D, I), columns = widths, 128 if format_name == "dense" else 256  # noqa: E741
    fc1, fc2 = empty_matrices(format_name, 2 * I, D), empty_matrices(format_name, D, I)
    cut = geometry(ExpertWeights(fc1=fc1, fc2=fc2), warps)
    assert isinstance(cut, Geometry), cut
    tiles, halves = (2 ** math.ceil(math.log2(max(1, cut.row_cap / tokens))) for tokens in (8, 4))
    sums = columns // 32 if format_name.startswith("bank") else 0
    taken = cut.row_cap * (2 * columns * max(cut.jobs) + 64) + 64 * halves * sums * max(cut.jobs)

    assert cut.row_cap >= 1
    assert taken + warps * (8 + 1 + tiles) * 1024 <= 215 * 1024
    assert cut.splits * cut.jobs[1] * columns >= I > (cut.splits - 1) * cut.jobs[1] * columns
    assert cut.jobs[0] * columns >= D
