"""The run folder on disk: whole batches or nothing, whatever happens in between."""

import errno
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from thermoe.analysis.load import RunFolder
from thermoe.errors import ConfigError, ThermoeError
from thermoe.experiments import store as store_module
from thermoe.experiments.store import BatchKey, RunStore, write_file


def key(index, strategy="baseline"):
    return BatchKey("words", 0, strategy, index)


def rows(index):
    state = json.dumps({"step": 10 * (index + 1)})
    return {
        "batches": [
            {"num_tokens": 32, "num_steps": 2, "energy_j": 1.5 + index, "throttled": False, "arm_state": state}
        ],
        "steps": [{"step": 2 * index + i, "latency_s": 0.01} for i in range(2)],
        "experts": [{"layer": 0, "tokens_per_expert": [1.0, 2.0, 3.0]}],
        "telemetry": [{"time_s": 0.1 * index, "source": "simulated", "kind": "simulated", "temp_c": 40.0}],
    }


def new_store(tmp_path):
    return RunStore.create(tmp_path / "run", 'name = "x"\n', {"telemetry": "simulated"})


def energies(path):
    return RunFolder(path).tables["batches"]["energy_j"].tolist()


def test_what_was_appended_is_read_back_before_and_after_joining(tmp_path):
    store = new_store(tmp_path)
    for index in range(3):
        store.append(key(index), rows(index))
    before = RunFolder(store.path)
    store.join()
    after = RunFolder(store.path)
    assert not before.is_complete
    assert after.is_complete
    for name, table in before.tables.items():
        assert table.equals(after.tables[name]), name
    assert after.tables["batches"]["energy_j"].tolist() == [1.5, 2.5, 3.5]
    assert after.tables["steps"]["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert list(after.tables["experts"]["tokens_per_expert"][0]) == [1.0, 2.0, 3.0]
    assert not store.parts.exists()


def test_columns_are_those_of_the_documented_schema(tmp_path):
    store = new_store(tmp_path)
    store.append(key(0), rows(0))
    store.join()
    from thermoe.analysis.schema import columns_of

    for name in store_module.TABLES:
        written = set(pq.read_schema(store.path / f"{name}.parquet").names)
        assert set(columns_of(name)) <= written, name
    assert pq.read_schema(store.path / "batches.parquet").field("seed").type == "int64"


def test_a_misspelt_column_is_an_error_and_never_a_null(tmp_path):
    wrong = rows(0)
    wrong["steps"][0]["latency_ms"] = 3.0
    with pytest.raises(AssertionError, match="latency_ms"):
        new_store(tmp_path).append(key(0), wrong)


def test_reopening_knows_the_finished_batches_and_the_last_state_of_each_arm(tmp_path):
    store = new_store(tmp_path)
    store.append(key(0), rows(0))
    store.append(key(0, "top_p"), rows(4))
    store.append(key(1), rows(1))
    again = RunStore.open(store.path)
    assert again.finished == {key(0), key(1), key(0, "top_p")}
    assert again.arm_states == {("words", 0, "baseline"): {"step": 20}, ("words", 0, "top_p"): {"step": 50}}
    again.append(key(2), rows(2))
    again.join()
    assert energies(store.path) == [1.5, 5.5, 2.5, 3.5]
    assert RunStore.open(store.path).is_joined
    assert RunStore.open(store.path).finished == again.finished


def test_what_a_kill_left_unfinished_is_ignored_and_then_removed(tmp_path):
    store = new_store(tmp_path)
    store.append(key(0), rows(0))
    half = store.parts / "000001.tmp"
    half.mkdir()
    (half / "steps.parquet").write_bytes(b"PAR1 torn")
    (store.path / "summary.json.tmp").write_text("{")
    assert energies(store.path) == [1.5]
    again = RunStore.open(store.path)
    assert again.finished == {key(0)}
    assert not half.exists()
    assert list(store.path.glob("*.tmp")) == []


def test_a_batch_is_never_written_twice(tmp_path):
    store = new_store(tmp_path)
    store.append(key(0), rows(0))
    with pytest.raises(AssertionError, match="twice"):
        store.append(key(0), rows(0))


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_one_line_leaves_nothing_torn_and_can_be_gone_on_from(tmp_path, monkeypatch, call):
    store = new_store(tmp_path)
    store.append(key(0), rows(0))
    real, seen = getattr(os, call), []

    def fails_third_time(*arguments):
        seen.append(arguments)
        if len(seen) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(store_module.os, call, fails_third_time)
    with pytest.raises(ThermoeError, match=r"no space left.*--resume") as stop:
        store.append(key(1), rows(1))
    assert "\n" not in str(stop.value)
    monkeypatch.setattr(store_module.os, call, real)
    assert [p.name for p in store.parts.iterdir()] == ["000000"]
    assert energies(store.path) == [1.5]
    again = RunStore.open(store.path)
    again.append(key(1), rows(1))
    again.join()
    assert energies(store.path) == [1.5, 2.5]


@pytest.mark.parametrize("die_at", range(12))
def test_a_death_at_any_moment_of_joining_loses_and_repeats_nothing(tmp_path, monkeypatch, die_at):
    store = new_store(tmp_path)
    for index in range(3):
        store.append(key(index), rows(index))
    calls = iter(range(100))

    class Killed(BaseException):
        pass

    def dies(real):
        def call(*arguments, **options):
            if next(calls) == die_at:
                raise Killed
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies(Path.rename))
        patch.setattr(store_module, "_sync_folder", dies(store_module._sync_folder))
        patch.setattr(os, "rmdir", dies(os.rmdir))
        try:
            store.join()
        except Killed:
            pass
        else:
            assert die_at >= 9, "nothing died, so nothing was tested"
    assert energies(store.path) == [1.5, 2.5, 3.5]
    again = RunStore.open(store.path)
    again.join()
    assert energies(store.path) == [1.5, 2.5, 3.5]
    assert not again.parts.exists()


def test_a_folder_that_is_not_a_run_is_never_written_to(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        RunStore.create(tmp_path, "", {})
    with pytest.raises(ConfigError, match="not a run folder"):
        RunStore.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_a_folder_that_is_a_run_says_how_to_resume(tmp_path):
    store = new_store(tmp_path)
    with pytest.raises(ConfigError, match="--resume"):
        RunStore.create(store.path, "", {})


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ThermoeError, match="cannot write"):
        RunStore.create(tmp_path / "file" / "run", "", {})


@pytest.mark.parametrize("write", ["run folder", "single file"])
def test_a_disk_that_is_full_from_the_start_leaves_nothing_and_promises_no_resumption(tmp_path, monkeypatch, write):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "write", full)
    with pytest.raises(ThermoeError, match=r"no space left for .*another --out") as stop:
        new_store(tmp_path) if write == "run folder" else write_file(tmp_path / "new" / "c.json", "{}")
    assert "--resume" not in str(stop.value)
    assert ".tmp" not in str(stop.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
