"""Work that loads a device for a share of the time: short bursts of real work, and pauses.

It asks the device for nothing but work: clocks, limits and modes stay as they are.
"""

import math
import os
import time
from collections.abc import Callable
from enum import StrEnum

import torch

from thermoe.errors import ConfigError

PERIOD_S = 0.1  # of the duty cycle: as often as the sensors of a board change
_BURST_S = 0.004  # length of a burst: short against the period, long against a launch
_MOST_LAUNCHES = 2000
_TILE, _DEPTH = 128, 4096  # one product of this tile keeps about one processor of a GPU busy

Burst = Callable[[], None]


class StressWork(StrEnum):
    """What a burst does: matrix products (compute), or copies (memory)."""

    MATMUL = "matmul"
    COPY = "copy"


def make_burst(
    device: torch.device, work: StressWork, size: int = 0, processors: float = 1.0, *, burst_s: float = _BURST_S
) -> Burst:
    """A function that does some milliseconds of work and waits for its end.

    Args:
        device: Where; a CPU does the same work at smaller sizes, on one thread.
        work: What.
        size: Rows of square matrices, or MiB of a copy; 0 for what fills the device.
        processors: Share of a GPU's processors aimed at, by as many independent products of one tile as
            there are processors in the share; 1 leaves the choice to the library. Products only.
        burst_s: About how long a burst takes [s]; at least one product or copy.

    Raises:
        ConfigError: For a share outside (0, 1], or one of copies or of a CPU; for a size that a machine's memory lacks.
    """
    if not 0.0 < processors <= 1.0 or (processors < 1.0 and (work is StressWork.COPY or device.type != "cuda")):
        raise ConfigError(
            f"{processors} of the processors of {device.type} for {work}: a share in (0, 1] is for products on a GPU"
        )
    if device.type == "cpu":
        _refuse_too_large(work, size)
    if processors < 1.0:
        launch = _tiles(device, processors)
    elif work is StressWork.MATMUL:
        launch = _product(device, size or (8192 if device.type == "cuda" else 256))
    else:
        launch = _copy(device, (size or (1024 if device.type == "cuda" else 16)) << 20)
    wait = torch.cuda.synchronize if device.type == "cuda" else _nothing
    launches = _launches_in(burst_s, launch, wait, device)

    def burst() -> None:
        for _ in range(launches):
            launch()
        wait(device)

    return burst


def keep_busy(
    burst: Burst,
    duty: Callable[[], float],
    seconds: float,
    *,
    period_s: float = PERIOD_S,
    stopped: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Run bursts for a share of each period until `seconds` are over or `stopped` says so.

    Args:
        burst: The work.
        duty: Share of time in [0, 1], asked for in each period.
        seconds: Hard limit; the last burst may end a few milliseconds later.
        period_s: Length of a period [s]; where bursts are longer than the share of one, several keep it together.
        stopped: Whether to end early, asked after every burst.
        clock, sleep: Time [s].

    Returns:
        Time spent in bursts [s].

    Raises:
        ConfigError: For a period that is not positive.
    """
    if not 0.0 < period_s < math.inf:
        raise ConfigError(f"period of {period_s} s of a load: needs a positive number")
    start_s, busy_s, period = clock(), 0.0, 0
    owed_s, counted_s = 0.0, start_s  # bursts may be long against a period: what was too much is made up for later
    while not stopped() and clock() - start_s < seconds:
        share = duty()
        period_end_s = min(start_s + (period + 1) * period_s, start_s + seconds)
        owed_s = min(owed_s + share * (period_end_s - counted_s), period_s)
        counted_s = period_end_s
        while owed_s > 0.0 and clock() < period_end_s and not stopped():
            before_s = clock()
            burst()
            took_s = clock() - before_s
            owed_s -= took_s
            busy_s += took_s
        sleep(max(period_end_s - clock(), 0.0))
        period = int((clock() - start_s) / period_s + 1e-9)
    return busy_s


def _refuse_too_large(work: StressWork, size: int) -> None:
    """A GPU says itself that its memory is full; a machine ends whatever process it likes."""
    needed = 3 * 4 * size**2 if work is StressWork.MATMUL else 2 * (size << 20)
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if needed > most:
        raise ConfigError(
            f"size of {size} for {work}: takes {needed >> 20} MiB of memory, {most >> 20} MiB are allowed"
        )


def _product(device: torch.device, size: int) -> Callable[[], object]:
    a, b = (_random(device, size, size) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _tiles(device: torch.device, processors: float) -> Callable[[], object]:
    count = max(round(processors * torch.cuda.get_device_properties(device).multi_processor_count), 1)
    a, b = _random(device, count, _TILE, _DEPTH), _random(device, count, _DEPTH, _TILE)
    out = torch.empty(count, _TILE, _TILE, device=device, dtype=a.dtype)
    return lambda: torch.bmm(a, b, out=out)


def _copy(device: torch.device, num_bytes: int) -> Callable[[], object]:
    source = _random(device, num_bytes // 2 if device.type == "cuda" else num_bytes // 4)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _random(device: torch.device, *shape: int) -> torch.Tensor:
    """Random values: zeros would draw 40 % less power."""
    generator = torch.Generator(device=device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.randn(shape, device=device, dtype=dtype, generator=generator)


def _launches_in(
    seconds: float, launch: Callable[[], object], wait: Callable[[torch.device], None], device: torch.device
) -> int:
    """How many launches take about `seconds`."""
    launch()
    wait(device)
    count = 1
    while True:
        before_s = time.perf_counter()
        for _ in range(count):
            launch()
        wait(device)
        took_s = time.perf_counter() - before_s
        if took_s >= seconds / 2.0 or count >= _MOST_LAUNCHES:
            return min(max(round(count * seconds / took_s), 1), _MOST_LAUNCHES)
        count *= 2


def _nothing(_device: torch.device) -> None:
    """A CPU has finished when the call returns."""
