"""Routing never waits for the host, so that a captured graph can hold it."""

from dataclasses import replace

import pytest
import torch
from route_cases import GENERAL, layer_knobs, neutral
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from thermoe.kernels.route import LayerKnobs, route
from thermoe.runtime.knobs import DeviceKnobs


def _all_paths(ranks_TE, gates_TE, knobs: LayerKnobs, live_T) -> torch.Tensor:
    routing = route(ranks_TE, gates_TE, knobs, top_k=3, columns=2, live_T=live_T, scale=2.0, log_gates_TE=ranks_TE)
    return routing.weights_TK


def test_nothing_is_read_back_by_the_host() -> None:
    """With fake tensors a read of any value raises, and so does a shape that depends on one."""
    knobs = replace(layer_knobs(neutral(8, 3, union=True)), **GENERAL)
    names = [n for n in LayerKnobs.__slots__ if isinstance(getattr(knobs, n), torch.Tensor)]
    mode = FakeTensorMode()
    fake = replace(knobs, **{n: mode.from_tensor(getattr(knobs, n).clone()) for n in names})
    with mode:
        ranks_TE, live_T = torch.randn(14, 8), torch.ones(14)
        assert _all_paths(ranks_TE, ranks_TE.softmax(-1), fake, live_T).shape == (14, 3)
    ranks_TE = torch.randn(14, 8)
    graph = make_fx(lambda r, live: _all_paths(r, r.softmax(-1), knobs, live))(ranks_TE, torch.ones(14))
    called = {str(node.target) for node in graph.graph.nodes}
    assert not [name for name in called if "local_scalar" in name or "nonzero" in name or "masked_select" in name]
    other = torch.randn(14, 8)  # the traced graph holds no value of its example
    torch.testing.assert_close(
        graph(other, torch.ones(14)), _all_paths(other, other.softmax(-1), knobs, torch.ones(14))
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_no_synchronisation_on_a_gpu() -> None:
    knobs = DeviceKnobs(neutral(8, 3, union=True, price=0.3, protected_k0=1, max_experts=2, gate_mass=0.9), "cuda")
    ranks_TE, live_T = torch.randn(14, 8, device="cuda"), torch.ones(14, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _all_paths(ranks_TE, ranks_TE.softmax(-1), replace(knobs.layer(0), **GENERAL), live_T)
    finally:
        torch.cuda.set_sync_debug_mode("default")
