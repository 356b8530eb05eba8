"""What must hold when a Transformers model is attached on a GPU, each written down as it is found."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.decoder import Decoder
from thermoe.integrations.hooks import RouterHooks
from thermoe.telemetry.monitor import GpuSystemMonitor
from thermoe.types import RoutingKnobs

SYNC_STEPS = 8
SETTLE_STEPS = 3
NEW_TOKENS = 12
MONITOR_HZ = 10.0
GENERATE_MODES: dict[str, dict[str, Any]] = {
    "with_cache": {},
    "without_cache": {"use_cache": False},
}
STATIC_CACHE: dict[str, Any] = {"cache_implementation": "static"}
Attach = Callable[[], RouterHooks]


def same_bits(model: nn.Module, blocks: Tensor, attach: Attach) -> dict[str, Any]:
    """Whether an attached model without knobs gives the bare model's logits bit for bit, in a block and in decode."""

    def logits() -> list[Tensor]:
        decoder = Decoder(model, blocks)
        with torch.inference_mode():
            return [model(input_ids=blocks[0], use_cache=False).logits, *(decoder.step() for _ in range(SYNC_STEPS))]

    bare, again = logits(), logits()
    hooks = attach()
    watched = logits()
    hooks.remove()
    detached = logits()
    return {
        "dtype": str(bare[0].dtype).removeprefix("torch."),
        "bare_repeats_itself": _equal(bare, again),
        "attached_equals_bare": _equal(bare, watched),
        "detached_equals_bare": _equal(bare, detached),
        "values_compared": sum(x.numel() for x in bare),
    }


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def host_waits(
    model: nn.Module, blocks: Tensor, attach: Attach, knobs: RoutingKnobs, monitor: GpuSystemMonitor | None
) -> dict[str, Any]:
    """Events in which the host waits for the device, in steps of decode: bare, watched and steered.

    Counted by the profiler (which adds the same few of its own to each) and by torch's own warnings.
    """
    counts: dict[str, Any] = {"steps": SYNC_STEPS, "monitor_hz": MONITOR_HZ if monitor else None}
    _count_waits(model, blocks)  # the first recording sets up the profiler
    if monitor:
        monitor.start()
    counts["bare"] = _count_waits(model, blocks)
    hooks = attach()
    counts["watched"] = _count_waits(model, blocks)
    hooks.set_knobs(knobs)
    counts["steered"] = _count_waits(model, blocks)
    hooks.remove()
    if monitor:
        monitor.stop()
    bare = counts["bare"]
    counts["added_by_attaching"] = {
        name: {kind: counts[name][kind] - bare[kind] for kind in ("profiler_total", "sync_warnings")}
        for name in ("watched", "steered")
    }
    counts["none_added"] = all(
        added <= 0 for modes in counts["added_by_attaching"].values() for added in modes.values()
    )
    return counts


def _count_waits(model: nn.Module, blocks: Tensor) -> dict[str, Any]:
    decoder = Decoder(model, blocks)
    for _ in range(SETTLE_STEPS):
        decoder.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _set_sync_debug_mode("warn")
        try:
            for _ in range(SYNC_STEPS):
                decoder.step()
        finally:
            _set_sync_debug_mode("default")
    warned = sum("called a synchronizing" in str(w.message) for w in caught)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as recorded:
        for _ in range(SYNC_STEPS):
            decoder.step()
    by_name = Counter(e.name for e in recorded.events() if _waits(e.name))
    return {"profiler": dict(by_name), "profiler_total": sum(by_name.values()), "sync_warnings": warned}


def _set_sync_debug_mode(mode: str) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode(mode)


def _waits(name: str) -> bool:
    return name.endswith("Synchronize") or "Memcpy DtoH" in name


def monitor_share(monitor: GpuSystemMonitor, seconds: float) -> dict[str, float]:
    """Share of one CPU core that the monitor takes, by the process's CPU time while nothing else runs [%]."""
    idle_pct = _cpu_pct(seconds / 3.0)
    with monitor:
        samples = len(monitor.history)
        watching_pct = _cpu_pct(seconds)
        samples = len(monitor.history) - samples
    return {
        "hz": samples / seconds,
        "seconds": seconds,
        "cpu_pct_of_one_core": watching_pct,
        "cpu_pct_without": idle_pct,
    }


def _cpu_pct(seconds: float) -> float:
    start_s, used_s = time.monotonic(), time.process_time()
    time.sleep(seconds)
    return 100.0 * (time.process_time() - used_s) / (time.monotonic() - start_s)


def generate_modes(
    model: nn.Module, blocks: Tensor, attach: Attach, knobs: RoutingKnobs, *, static: bool
) -> dict[str, Any]:
    """`generate()` in every mode: whether watching leaves its tokens as they are, and whether steering works.

    The static cache comes last and only where `static` is set: on a GPU it compiles the model several times.
    """
    prompt = blocks[0][:4, :16]
    left, right = torch.ones_like(prompt), torch.ones_like(prompt)
    left[1, :5], right[2, -4:] = 0, 0
    cases: dict[str, tuple[Tensor | None, dict[str, Any]]] = {
        name: (None, settings) for name, settings in GENERATE_MODES.items()
    }
    cases |= {"left_padded": (left, {}), "right_padded": (right, {})}
    if static:
        cases["static_cache"] = (None, STATIC_CACHE)
    return {name: _generate_case(model, prompt, mask, attach, knobs, how) for name, (mask, how) in cases.items()}


def _generate_case(
    model: nn.Module, prompt: Tensor, mask: Tensor | None, attach: Attach, knobs: RoutingKnobs, settings: dict[str, Any]
) -> dict[str, Any]:
    mask = torch.ones_like(prompt) if mask is None else mask

    def generate() -> Tensor:
        tokens: Tensor = model.generate(  # type: ignore[operator]
            prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, **settings
        )
        return tokens

    hooks: RouterHooks | None = None
    found: dict[str, Any] = {"works": False}
    try:
        started_s = time.monotonic()
        bare = generate()
        found["bare_s"] = round(time.monotonic() - started_s, 2)
        hooks = attach()
        found["watched_tokens_equal_bare"] = torch.equal(generate(), bare)
        hooks.counters.drain()
        hooks.set_knobs(knobs)
        steered = generate()
        found["steered_new_tokens"] = steered.shape[1] - prompt.shape[1]
        found["steered_changed_slots"] = round(float(hooks.counters.drain().changed_slots.mean()), 4)
        found["seconds"] = round(time.monotonic() - started_s, 2)
        found["works"] = found["steered_new_tokens"] > 0
    except Exception as err:  # noqa: BLE001 - what fails is written down, the benchmark goes on
        found["error"] = f"{type(err).__name__}: {' '.join(str(err).split())[:600]}"
    finally:
        if hooks is not None:
            hooks.remove()
    return found
