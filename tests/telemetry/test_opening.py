import sys

import pytest
from fake_nvml import NVMLError, h200

from thermoe.errors import ConfigError, DataError, TelemetryError
from thermoe.telemetry import NvmlSource, ReplaySource, SimulatedSource, open_source
from thermoe.types import Kind


@pytest.fixture
def nvml(monkeypatch):
    fake = h200()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_auto_takes_nvml_only_where_the_work_runs_on_cuda(nvml):
    assert isinstance(open_source("auto", device="cpu"), SimulatedSource)
    assert isinstance(open_source("auto", device="cuda"), NvmlSource)


def test_auto_without_nvml_says_that_it_simulates(nvml, caplog):
    nvml.init_error = NVMLError("Driver Not Loaded")
    assert open_source("auto", device="cuda").kind is Kind.SIMULATED
    assert "simulated" in caplog.text


def test_what_is_asked_for_is_given_or_refused(nvml, tmp_path):
    assert open_source("nvml:1").name == "nvml:1"
    assert open_source("nvml").name == "nvml:0"
    assert open_source("simulated", device="cuda").name == "simulated"
    log = tmp_path / "a:b.csv"
    log.write_text("time_s,temp_c\n0,50\n")
    assert isinstance(open_source(f"replay:{log}"), ReplaySource)
    with pytest.raises(DataError):
        open_source("replay:nowhere.csv")
    nvml.init_error = NVMLError("Driver Not Loaded")
    with pytest.raises(TelemetryError, match="simulated"):
        open_source("nvml", device="cpu")


@pytest.mark.parametrize("spec", ["", "gpu", "replay:", "replay", "auto:1", "simulated:2", "host:1"])
def test_unknown_names_are_refused_with_the_list(spec):
    with pytest.raises(ConfigError, match=r"replay:FILE or host"):
        open_source(spec)


@pytest.mark.parametrize("spec", ["nvml:one", "nvml:-1", "nvml:1.5"])
def test_an_index_is_a_whole_number(spec):
    with pytest.raises(ConfigError, match="whole number"):
        open_source(spec)
