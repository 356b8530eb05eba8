"""The cost of watching, with a stand-in for the NVML library that takes a known time."""

import json
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "telemetry")]

from fake_nvml import NVMLError, h200  # noqa: E402

from benchmarks import sensors  # noqa: E402


def test_a_slow_call_shows_in_its_own_time_and_in_the_share(monkeypatch, tmp_path):
    class Slow(type(h200())):
        def nvmlDeviceGetFieldValues(self, handle, fields):  # noqa: N802
            end_s = time.thread_time() + 0.004
            while time.thread_time() < end_s:
                pass
            return super().nvmlDeviceGetFieldValues(handle, fields)

    fake = h200()
    fake.__class__ = Slow
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(sensors, "CALL_REPEATS", 3)
    out = tmp_path / "new" / "sensors.json"
    assert sensors.main(["--seconds", "1", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    calls = {name: figures["mean_cpu_us"] for name, figures in results["calls"].items()}
    assert 4000 <= calls["nvmlDeviceGetFieldValues([186])"] < 6000
    assert calls["nvmlDeviceGetEnforcedPowerLimit"] < 1000
    assert {"nvmlDeviceGetFieldValues([83])", "nvmlDeviceGetFieldValues([82, 185, 186, 83])"} <= set(calls)
    assert 4.0 <= results["monitor"]["cpu_ms_per_read"] < 7.0
    assert 2.0 < results["monitor"]["share_of_one_core_pct"] < 8.0
    assert fake.opened == 0


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, tmp_path, capsys):
    fake = h200()
    fake.init_error = NVMLError("Driver Not Loaded")
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert sensors.main(["--out", str(tmp_path / "x.json")]) == 2
    said = capsys.readouterr().err
    assert "Driver Not Loaded" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
