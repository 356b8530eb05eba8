"""Where a run folder may be made, and that one process at a time writes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thermoe.errors import ConfigError
from thermoe.experiments.lock import LOCK_FILE
from thermoe.experiments.store import RunStore

WRITER = """
import sys, time
from pathlib import Path
from thermoe.experiments.store import RunStore
RunStore.{how}
print("writing", flush=True)
time.sleep(60)
"""
CREATE, OPEN = 'create(Path(sys.argv[1]), "", {})', "open(Path(sys.argv[1]))"


@pytest.fixture
def writer(tmp_path):
    """Start another process that creates or opens `tmp_path / run` and keeps it."""
    started = []

    def start(how):
        command = [sys.executable, "-c", WRITER.replace("{how}", how), str(tmp_path / "run")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_run_that_another_process_writes_is_refused_until_that_is_killed(tmp_path, writer):
    run = tmp_path / "run"
    process = writer(CREATE)
    with pytest.raises(ConfigError, match="another process writes") as stop:
        RunStore.open(run)
    assert str(run) in str(stop.value)
    assert "\n" not in str(stop.value)
    process.kill()
    process.wait()
    assert RunStore.open(run).finished == set()


def test_two_resumptions_at_once_are_refused_and_leave_the_first_ones_half_written_batch(tmp_path, writer):
    run = tmp_path / "run"
    subprocess.run(
        [sys.executable, "-c", WRITER.replace("{how}", CREATE).replace("60", "0"), str(run)],
        check=True,
        capture_output=True,
    )
    writer(OPEN)
    half = run / "parts" / "000000.tmp"
    half.mkdir()
    with pytest.raises(ConfigError, match="another process writes"):
        RunStore.open(run)
    assert half.is_dir()


def test_a_run_that_is_only_being_made_cannot_be_made_twice(tmp_path):
    from thermoe.experiments import lock

    beside = tmp_path / "run.tmp"
    beside.mkdir()
    held = os.open(beside / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    lock.fcntl.flock(held, lock.fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another process writes"):
        RunStore.create(tmp_path / "run", "", {})
    assert beside.is_dir()
    os.close(held)
    assert RunStore.create(tmp_path / "run", "", {}).path.is_dir()


def test_one_process_may_open_its_own_run_again(tmp_path):
    store = RunStore.create(tmp_path / "run", "", {})
    assert RunStore.open(store.path).finished == set()


@pytest.mark.parametrize("typed", [".", "../here"])
def test_an_empty_working_folder_becomes_the_run_and_stays_where_the_user_stands(tmp_path, monkeypatch, typed):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    RunStore.create(Path(typed), 'name = "x"\n', {})
    assert here.stat().st_ino == inode
    assert {p.name for p in here.iterdir()} == {"parts", "env.json", "config.toml", LOCK_FILE}
    assert RunStore.open(here).finished == set()
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("typed", ["..", "/"])
def test_a_folder_that_holds_others_is_refused(tmp_path, monkeypatch, typed):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError, match="not an empty folder"):
        RunStore.create(Path(typed), "", {})
    assert [p.name for p in tmp_path.rglob("*")] == ["here"]
