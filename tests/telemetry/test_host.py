"""The host source against a stand-in for the Zeus library."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from thermoe.errors import TelemetryError
from thermoe.telemetry import HostSource
from thermoe.telemetry import host as host_module
from thermoe.types import Kind


class ZeusBaseCPUError(Exception):
    pass


class FakeCpus:
    def __init__(self, readings):
        self.readings = readings

    def __len__(self):
        return len(self.readings)

    def get_total_energy_consumption(self, index):
        cpu_mj, dram_mj = self.readings[index]
        return SimpleNamespace(cpu_mj=cpu_mj, dram_mj=dram_mj)


@pytest.fixture
def zeus(monkeypatch):
    cpu, error = ModuleType("zeus.device.cpu"), ModuleType("zeus.device.exception")
    error.ZeusBaseCPUError = ZeusBaseCPUError
    cpu.cpus = FakeCpus([[1000.0, 500.0], [2500.0, None]])
    cpu.get_cpus = lambda: cpu.cpus
    for name, module in [("zeus", ModuleType("zeus")), ("zeus.device", ModuleType("zeus.device"))]:
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "zeus.device.cpu", cpu)
    monkeypatch.setitem(sys.modules, "zeus.device.exception", error)
    return cpu


def test_energy_adds_up_packages_and_memory_and_power_is_its_rise(zeus, monkeypatch):
    clock = iter([10.0, 12.0, 12.0, 13.0])
    monkeypatch.setattr(host_module.time, "monotonic", lambda: next(clock))
    source = HostSource()

    first = source.read()
    assert first.energy_j == pytest.approx(4.0)
    assert first.power_w is None
    assert first.kind is Kind.MEASURED
    assert first.temp_c is None
    zeus.cpus.readings[0][0] += 50_000.0
    assert source.read().power_w == pytest.approx(25.0)
    assert source.read().power_w is None  # no time has passed
    zeus.cpus.readings[0][0] = 0.0
    assert source.read().power_w is None  # the counter fell


def test_a_counter_that_is_not_a_number_reads_none(zeus):
    zeus.cpus.readings[0][0] = float("nan")
    assert HostSource().read().energy_j is None


def test_no_cpu_no_right_and_no_library_are_one_clear_line(zeus, monkeypatch):
    zeus.cpus = FakeCpus([])
    with pytest.raises(TelemetryError, match="finds no CPU"):
        HostSource()
    zeus.get_cpus = lambda: (_ for _ in ()).throw(ZeusBaseCPUError("no RAPL"))
    with pytest.raises(TelemetryError, match=r"no RAPL.*right to read"):
        HostSource()
    monkeypatch.setitem(sys.modules, "zeus.device.cpu", None)
    with pytest.raises(TelemetryError, match=r"thermoe\[zeus\]"):
        HostSource()


def test_a_closed_host_is_refused(zeus):
    source = HostSource()
    source.close()
    source.close()
    with pytest.raises(TelemetryError, match="closed"):
        source.read()
