import os
import stat
import subprocess
import sys

import pytest

from thermoe.cost.database import CostDatabase
from thermoe.cost.safe_file import refuse_to_overwrite, replacing, write_atomically, writing_alone
from thermoe.errors import ConfigError, DataError


def test_a_link_goes_on_naming_its_target(tmp_path):
    target, link = tmp_path / "there" / "x.json", tmp_path / "link.json"
    write_atomically(target, "old")
    link.symlink_to(target)
    write_atomically(link, "né 中")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "né 中"
    assert [p.name for p in target.parent.iterdir()] == ["x.json"]


def test_permissions_stay_and_new_files_obey_the_umask(tmp_path):
    secret, fresh = tmp_path / "secret", tmp_path / "fresh"
    secret.write_text("old")
    secret.chmod(0o600)
    before = os.umask(0o027)
    try:
        write_atomically(secret, "new")
        write_atomically(fresh, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o640


def test_a_pipe_and_a_folder_are_not_replaced(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(DataError, match="no regular file"):
            CostDatabase().save(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_the_old_file_alone(tmp_path, failure):
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def write() -> None:
        with replacing(path) as scratch:
            scratch.write_text("half of")
            raise failure

    with pytest.raises((DataError, KeyboardInterrupt)) as err:
        write()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert isinstance(err.value, KeyboardInterrupt) or "No space left" in str(err.value)


def test_an_input_is_not_overwritten_under_another_name(tmp_path):
    (tmp_path / "a.json").write_text("")
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="would be lost"):
        refuse_to_overwrite(tmp_path / "b.json", [tmp_path / "missing", tmp_path / "a.json"])
    refuse_to_overwrite(tmp_path / "c.json", [tmp_path / "a.json"])


HOLD = """
import sys, time
from pathlib import Path
from thermoe.cost.safe_file import writing_alone
with writing_alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_ends_however_it_does(tmp_path):
    path = tmp_path / "deep" / "x.json"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process writes"), writing_alone(path):
            pass
        first.kill()
    with writing_alone(path):
        assert [p.name for p in path.parent.iterdir()] == [".x.json.lock"]
    assert list(path.parent.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"), writing_alone(tmp_path / "file" / "x.json"):
        pass
