"""What the tests of `thermoe.attach` share: a meter, a model that has to be left untouched, and text to generate."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tiny_models import tiny_model, token_ids

from thermoe.types import Kind, SysState

NAME = "qwen3_moe"


class Meter:
    """Sensors of a board that draws 300 W; silent or failing when told."""

    name, kind = "meter", Kind.MEASURED

    def __init__(self):
        self.began_s, self.silent, self.closed = time.monotonic(), False, 0

    def read(self) -> SysState:
        now_s = time.monotonic()
        known = {} if self.silent else {"power_w": 300.0, "energy_j": 300.0 * (now_s - self.began_s), "temp_c": 50.0}
        return SysState(time_s=now_s, wall_time_s=time.time(), source=self.name, kind=self.kind, **known)

    def close(self) -> None:
        self.closed += 1


@contextmanager
def untouched_model() -> Iterator[torch.nn.Module]:
    """The tiny model; afterwards it has to compute what it did, without hooks or threads left."""
    model = tiny_model(NAME)
    before = hooks_of(model), threading.active_count()
    with torch.no_grad():
        logits = model(token_ids(3, 9)).logits
    yield model
    assert (hooks_of(model), threading.active_count()) == before
    with torch.no_grad():
        assert torch.equal(model(token_ids(3, 9)).logits, logits)


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def generate(model, tokens=12, rows=4):
    ids = token_ids(rows, 5)
    with torch.no_grad():
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
