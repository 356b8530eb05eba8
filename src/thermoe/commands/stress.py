"""`thermoe stress`: load a device for a while, to see what else runs on it under stress."""

from dataclasses import dataclass
from typing import Literal

from thermoe.workloads.stress_load import StressWork
from thermoe.workloads.stressor import Stressor, StressPlan


@dataclass(frozen=True, kw_only=True)
class Stress:
    """Keep a device busy for a share of the time, from a process of its own; clocks and limits stay as they are.

    Attributes:
        seconds: Hard limit [s], at most 3600.
        load: Share of time in which the device is busy, in (0, 1]; with --watts the highest one.
        device: cpu, cuda, cuda:INDEX, or auto: the GPU where there is one.
        work: Matrix products, or copies of memory.
        size: Rows of the matrices or MiB of a copy; 0 for what fills the device.
        processors: Share of a GPU's processors aimed at, products only.
        watts: Board power aimed at [W], by changing the share of time.
    """

    seconds: float = 30.0
    load: float = 0.5
    device: str = "auto"
    work: Literal["matmul", "copy"] = "matmul"
    size: int = 0
    processors: float = 1.0
    watts: float | None = None

    def execute(self) -> int:
        """Load the device and say what was done; 0 when the time is over."""
        plan = StressPlan(
            seconds=self.seconds,
            load=self.load,
            device=_found() if self.device == "auto" else self.device,
            work=StressWork(self.work),
            size=self.size,
            processors=self.processors,
            power_w=self.watts,
        )
        stressor = Stressor(plan).start()
        print(
            f"{plan.work} on {plan.device} for {plan.seconds:g} s, process {stressor.pid}; interrupt to stop",
            flush=True,
        )
        result = stressor.wait()
        share = 100.0 * result.busy_s / result.seconds
        power = "" if result.power_w is None else f", {result.power_w:.0f} W"
        print(f"busy for {result.busy_s:.2f} of {result.seconds:.2f} s ({share:.0f} %){power}")
        return 0


def _found() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
