"""A few runs killed for real; the hundred of the committed result are made by `kill_runs.py`."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("kill_runs.py")


def test_killed_runs_leave_folders_that_report_reads_and_resume_completes(tmp_path):
    out = tmp_path / "kills.json"
    command = [sys.executable, str(SCRIPT), "--runs", "3", "--seed", "7", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["kills"] == 4
    assert result["kills_that_struck"] >= 1, "every run ended before its kill: nothing was tested"
