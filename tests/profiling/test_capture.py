import gc
import weakref

import pytest
import torch
from profiling_cases import expert_case, make_setup

from thermoe.cost.database import CostDatabase
from thermoe.errors import CostError
from thermoe.profiling.capture import CaptureError, no_garbage_collection
from thermoe.profiling.command import EXIT_SPOILT, Profile
from thermoe.profiling.in_process import InProcess
from thermoe.profiling.operations.routing import DispatchCombine, RouterTopk
from thermoe.profiling.plan import cpu_plan

SIZES = (16, 8, 4, 2)


class Node:
    """Something that only the collector can free, as a graph on a reference cycle."""

    def __init__(self):
        self.itself = self


def churn():
    """Enough allocations to set off the collector many times over."""
    return [[i] for i in range(20_000)]


def test_nothing_on_a_cycle_dies_inside_the_block_and_all_of_it_before():
    before = weakref.ref(Node())
    with no_garbage_collection():
        assert before() is None
        inside = weakref.ref(Node())
        churn()
        assert inside() is not None
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off_and_an_error_turns_it_back_on():
    gc.disable()
    try:
        with no_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ValueError, match="inside"), no_garbage_collection():
        raise ValueError("inside")
    assert gc.isenabled()


def test_inputs_do_not_touch_torchs_default_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    case = expert_case("router_topk", "torch", SIZES, 8, 2, dtype="float32")
    benches = [RouterTopk(case, make_setup(cache_bytes=1e6)) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(benches[0].run(1), benches[1].run(1))
    assert not torch.equal(benches[0].run(0), benches[0].run(1))


OTHERS = [case.routed_rows for case in cpu_plan() if case.op == "dispatch_combine"][1:]


def spoil_first_case(monkeypatch):
    measure = InProcess.measure

    def broken(self, case):
        if case.routed_rows == 64:
            self.spoilt = True
            raise CaptureError("the CUDA graph was not captured")
        return measure(self, case)

    monkeypatch.setattr(InProcess, "measure", broken)


def test_after_a_broken_capture_a_fresh_process_measures_the_rest(tmp_path, monkeypatch):
    out = tmp_path / "x.costs.json"
    spoil_first_case(monkeypatch)
    assert Profile(out=out, ops=("dispatch_combine",), device="cpu", plain=True).execute() == 0
    costs = CostDatabase.load(out)
    assert [r.routed_rows for r in costs.rows] == OTHERS
    assert [f.message for f in costs.failures] == ["CaptureError: the CUDA graph was not captured"]


def test_a_process_that_others_run_again_says_that_it_is_spoilt_and_skips_what_failed(tmp_path, monkeypatch):
    out = tmp_path / "x.costs.json"
    settings = {"out": out, "ops": ("dispatch_combine",), "device": "cpu", "plain": True, "skip_failed": True}
    spoil_first_case(monkeypatch)
    assert Profile(**settings).execute() == EXIT_SPOILT
    assert len(CostDatabase.load(out)) == 0
    assert Profile(**settings).execute() == 0
    assert [r.routed_rows for r in CostDatabase.load(out).rows] == OTHERS


def test_a_later_success_forgets_the_failure(tmp_path, monkeypatch):
    out = tmp_path / "x.costs.json"
    with monkeypatch.context() as broken:
        broken.setattr(DispatchCombine, "rel_error", lambda self: 1.0)
        assert Profile(out=out, ops=("dispatch_combine",), device="cpu", plain=True).execute() == 1
    assert len(CostDatabase.load(out).failures) == 1 + len(OTHERS)
    assert Profile(out=out, ops=("dispatch_combine",), device="cpu", plain=True).execute() == 0
    assert CostDatabase.load(out).failures == []


def test_only_a_broken_capture_or_a_silent_device_spoils_the_process(monkeypatch):
    profiler = InProcess(torch.device("cpu"), None, None, None)
    case = expert_case("router_topk", "torch", SIZES, 8, 2, dtype="float32")

    def fail_with(error):
        def fail(self, case):
            raise error

        monkeypatch.setattr(InProcess, "_measure", fail)
        with pytest.raises(type(error)):
            profiler.measure(case)
        return profiler.spoilt

    assert not fail_with(RuntimeError("out of memory"))
    assert not fail_with(CostError("wrong result"))
    assert fail_with(CaptureError("broken"))
