"""The stressor: how busy it keeps a device, and everything that has to end it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import psutil
import pytest
import torch

from thermoe import cli
from thermoe.commands import stress as command
from thermoe.errors import ConfigError
from thermoe.types import Kind, SysState
from thermoe.workloads import Stressor, StressPlan, StressResult, StressWork, stress_process
from thermoe.workloads import stress_load as load_module
from thermoe.workloads.stress_load import keep_busy, make_burst
from thermoe.workloads.stress_process import PowerDuty
from thermoe.workloads.stressor import StressError

CPU = torch.device("cpu")


class Clock:
    """Time that bursts and pauses move."""

    def __init__(self, burst_s):
        self.now_s, self.burst_s, self.bursts = 100.0, burst_s, 0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds

    def burst(self):
        self.bursts += 1
        self.now_s += self.burst_s


@pytest.mark.parametrize("burst_s", [0.004, 0.0231, 0.03])
@pytest.mark.parametrize("duty", [0.1, 0.5, 0.77, 1.0])
def test_bursts_take_the_share_of_time_that_was_asked_for(duty, burst_s):
    clock = Clock(burst_s)
    busy_s = keep_busy(clock.burst, lambda: duty, 20.0, clock=clock, sleep=clock.sleep)
    assert busy_s == pytest.approx(clock.bursts * burst_s)
    assert busy_s == pytest.approx(20.0 * duty, rel=0.03)
    assert 120.0 <= clock.now_s <= 120.0 + burst_s


def test_a_burst_longer_than_the_period_keeps_to_the_share_and_the_limit():
    clock = Clock(0.25)
    busy_s = keep_busy(clock.burst, lambda: 0.5, 20.0, clock=clock, sleep=clock.sleep)
    assert busy_s == pytest.approx(10.0, abs=0.6)
    assert clock.now_s <= 120.25


@pytest.mark.parametrize("burst_s", [0.0005, 0.0015])
@pytest.mark.parametrize("duty", [0.25, 0.5, 0.75, 1.0])
def test_the_share_is_kept_in_every_twentieth_of_a_second_at_a_short_period(duty, burst_s):
    clock, begun_s = Clock(burst_s), []

    def burst():
        begun_s.append(clock.now_s)
        clock.burst()

    keep_busy(burst, lambda: duty, 10.0, period_s=0.005, clock=clock, sleep=lambda s: clock.sleep(s + 1e-4 * (s > 0)))
    shares = np.histogram(begun_s, bins=np.linspace(100.0, 110.0, 201))[0] * burst_s / 0.05
    assert shares.mean() == pytest.approx(duty, rel=0.03)
    assert np.abs(shares - duty).max() <= 2.0 * burst_s / 0.05 + 0.01


@pytest.mark.parametrize("period_s", [0.0, -0.1, math.nan, math.inf])
def test_a_period_that_is_none_is_refused(period_s):
    with pytest.raises(ConfigError, match="period of"):
        keep_busy(lambda: None, lambda: 0.5, 1.0, period_s=period_s)


def test_it_ends_at_once_when_told_to():
    clock = Clock(0.004)
    keep_busy(clock.burst, lambda: 1.0, 20.0, stopped=lambda: clock.bursts >= 7, clock=clock, sleep=clock.sleep)
    assert clock.bursts == 7


@pytest.mark.parametrize("work", list(StressWork))
def test_a_burst_on_a_cpu_takes_milliseconds(work):
    burst = make_burst(CPU, work)
    times_s = []
    for _ in range(9):
        start_s = time.perf_counter()
        burst()
        times_s.append(time.perf_counter() - start_s)
    assert 0.0005 < sorted(times_s)[4] < 0.1


def test_shares_of_processors_are_for_products_on_a_gpu():
    for device, work, share in [(CPU, StressWork.MATMUL, 0.5), (torch.device("cuda"), StressWork.COPY, 0.5)]:
        with pytest.raises(ConfigError, match="share in"):
            make_burst(device, work, processors=share)


class Board:
    """A board whose power follows the share of time with the delay of a sensor."""

    def __init__(self):
        self.duty, self.powers_w = 0.0, [117.0, 117.0]

    def read(self):
        return SysState(time_s=0.0, wall_time_s=0.0, source="t", kind=Kind.SIMULATED, power_w=self.powers_w[-2])


@pytest.mark.parametrize(("aim_w", "reached_w"), [(300.0, 300.0), (550.0, 550.0), (900.0, 574.0), (50.0, 117.0)])
def test_watts_aimed_at_are_reached_within_the_share_allowed(aim_w, reached_w):
    board = Board()
    aim = PowerDuty(board, aim_w, most=0.8)
    for _ in range(60):
        board.powers_w.append(117.0 + aim() * (688.0 - 117.0))
    assert aim.mean_power_w == pytest.approx(reached_w, abs=6.0)
    assert max(board.powers_w) <= 574.0 + 1e-6


def test_watts_without_a_reading_are_refused():
    board = Board()
    board.powers_w = [None, None]
    with pytest.raises(ConfigError, match="cannot be read"):
        PowerDuty(board, 300.0, 1.0)()


@pytest.mark.parametrize(
    "settings",
    [
        {"seconds": 0.0},
        {"seconds": 3601.0},
        {"load": 0.0},
        {"load": 1.1},
        {"processors": float("nan")},
        {"device": "tpu"},
        {"device": "cpu:3"},
        {"device": "cuda:x"},
        {"power_w": 300.0},
        {"size": -1},
    ],
)
def test_plans_beyond_bounds_are_refused(settings):
    with pytest.raises(ConfigError, match="stress"):
        StressPlan(**settings)


@pytest.mark.parametrize(("work", "size"), [(StressWork.MATMUL, 10**7), (StressWork.COPY, 10**9)])
def test_sizes_beyond_the_memory_of_the_machine_are_refused(work, size):
    with pytest.raises(ConfigError, match="MiB are allowed"):
        make_burst(CPU, work, size)
    with pytest.raises(StressError, match="MiB are allowed"):
        Stressor(StressPlan(seconds=5.0, work=work, size=size)).start()


def test_a_load_that_ends_in_an_error_says_which(monkeypatch):
    code = "import sys; print('{\"event\": \"up\"}', flush=True); sys.stderr.write('no power\\n'); sys.exit(2)"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", code], **options))
    with pytest.raises(StressError, match="ended with code 2: no power"):
        Stressor(StressPlan(seconds=5.0)).start().wait()


def test_a_process_is_stopped_and_says_what_it_did():
    with Stressor(StressPlan(seconds=60.0, load=0.4)) as stressor:
        process = psutil.Process(stressor.pid)
        time.sleep(1.0)
        assert stressor.running
        result = stressor.stop()
    assert not process.is_running()
    assert result.ended == "stopped"
    assert result.seconds < 10.0
    assert 0.2 < result.busy_s / result.seconds < 0.6
    assert stressor.stop() is result
    with pytest.raises(ConfigError, match="started before"):
        stressor.start()


def test_it_dies_with_a_parent_that_is_killed():
    plan = json.dumps(asdict(StressPlan(seconds=60.0, load=0.1)))
    code = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'thermoe.workloads.stress_process', sys.argv[1]]\n"
        "child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, plan], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    child.wait(5.0)  # raises if it lives on


def test_a_load_that_cannot_be_is_reported_in_one_line(monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch finds no CUDA device"):
            stress_process._run(StressPlan(device="cuda"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StressError, match="no load on cpu: exit code 1"):
        Stressor(StressPlan()).start()


def test_the_command_says_what_was_done(capsys, monkeypatch):
    class Fake:
        pid = 7

        def __init__(self, plan):
            assert (plan.seconds, plan.load, plan.device, plan.power_w) == (20.0, 0.9, "cuda:1", 400.0)

        def start(self):
            return self

        def wait(self):
            return StressResult(seconds=20.0, busy_s=11.0, power_w=399.6, ended="time")

    monkeypatch.setattr(command, "Stressor", Fake)
    assert cli.main(["stress", "--seconds", "20", "--load", "0.9", "--device", "cuda:1", "--watts", "400"]) == 0
    out = capsys.readouterr().out
    assert "matmul on cuda:1 for 20 s, process 7" in out
    assert "busy for 11.00 of 20.00 s (55 %), 400 W" in out
    assert cli.main(["stress", "--seconds", "-1", "--device", "cpu"]) == 2


def test_nothing_in_the_stressor_can_change_clocks_or_limits():
    for module in (load_module, stress_process):
        assert not [name for name in vars(module) if "nvmlDeviceSet" in name or name in ("pynvml", "subprocess")]


def test_a_burst_is_as_long_as_asked_for():
    def typical_s(burst):
        times_s = []
        for _ in range(9):
            start_s = time.perf_counter()
            burst()
            times_s.append(time.perf_counter() - start_s)
        return sorted(times_s)[4]

    short, long = (make_burst(CPU, StressWork.COPY, 1, burst_s=burst_s) for burst_s in (0.001, 0.02))
    assert typical_s(long) > 4.0 * typical_s(short)
