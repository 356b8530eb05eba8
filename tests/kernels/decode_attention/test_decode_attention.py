from dataclasses import replace

import pytest
import torch
from attention_cases import CASES, drawn, in_float64

from thermoe.errors import ConfigError
from thermoe.kernels.decode_attention import HeadNorms, decode_attention


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_over_the_cache(case):
    *given, norms = drawn(case, torch.float32)
    wanted, key, value = in_float64(case, *given, norms, 0.3, torch.float32)
    got = decode_attention(*given, num_heads=case.heads, scale=0.3, norms=norms)
    torch.testing.assert_close(got.double(), wanted, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(given[3][:, :, case.place].double(), key, atol=2e-6, rtol=1e-5)
    assert torch.equal(given[4][:, :, case.place].double(), value)


def test_bad_input_is_refused():
    case = CASES[1]
    *given, norms = drawn(case, torch.float32)

    def refused(said, place=None, wrong=None, **options):
        changed = list(given)
        if place is not None:
            changed[place] = wrong(given[place])
        with pytest.raises(ConfigError, match=said):
            decode_attention(*changed, **{"num_heads": case.heads, "scale": 1.0, "norms": norms} | options)

    refused("projections of shape", 0, lambda x: x[:1])
    refused("cosines and sines", 1, lambda x: x[:, :4])
    refused("multiple of G", num_heads=5)
    refused("multiple of G", 4, lambda x: x[:, :, :3])
    refused("a mask of shape", 6, lambda x: x[:, :3])
    refused("norms of", norms=replace(norms, key_W=norms.key_W[:3]))
    refused("contiguous", 3, lambda x: x.transpose(2, 3).contiguous().transpose(2, 3))
    refused("float64, torch.float32", 0, lambda x: x.double())
    assert isinstance(norms, HeadNorms)
