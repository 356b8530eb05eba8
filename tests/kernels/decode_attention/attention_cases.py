"""New positions and caches, and their attention written out head by head in float64.

Shapes: B sequences, H query heads, G key heads, L positions of the cache, W width of a head.
"""

from dataclasses import dataclass

import torch

from thermoe.kernels.decode_attention import HeadNorms


@dataclass(frozen=True)
class Case:
    batch: int
    heads: int
    groups: int
    length: int
    width: int
    place: int
    normed: bool = False
    shared: bool = False  # cosines and mask are those of all sequences


CASES = [
    Case(1, 1, 1, 1, 2, 0),
    Case(2, 6, 3, 33, 8, 0, normed=True),
    Case(2, 6, 2, 40, 32, 31, normed=True, shared=True),
    Case(3, 4, 4, 64, 12, 63),
    Case(1, 16, 1, 70, 64, 50, normed=True),
    Case(2, 8, 2, 100, 80, 95, shared=True),
]


def drawn(case, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(case.length + case.width)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    qkv = random(case.batch, (case.heads + 2 * case.groups) * case.width)
    rows = 1 if case.shared else case.batch
    angle = 6.0 * torch.rand(rows, case.width // 2, generator=generator)
    angle = torch.cat([angle, angle], dim=1)
    keys, values = (random(case.batch, case.groups, case.length, case.width) for _ in range(2))
    keys[:, :, case.place + 1 :] = float("nan")  # what was never written may be anything
    values[:, :, case.place + 1 :] = float("nan")
    mask = torch.zeros(rows, case.length)
    mask[0, : case.place // 2] = torch.finfo(torch.bfloat16).min
    norms = HeadNorms(1.0 + random(case.width) / 4, 1.0 + random(case.width) / 4, 1e-6) if case.normed else None
    place = torch.tensor([case.place], device=device)
    return (
        qkv,
        *(part.to(dtype).to(device) for part in (angle.cos(), angle.sin())),
        keys,
        values,
        place,
        mask.to(device),
        norms,
    )


def in_float64(case, qkv, cos, sin, keys, values, place, mask, norms, scale, dtype):
    """(B, H W), and the keys and values (B, G, W) of the new position, rounded to `dtype` where a model rounds."""
    heads = qkv.double().view(case.batch, -1, case.width).cpu()
    cos, sin, mask = cos.double().cpu(), sin.double().cpu(), mask.double().cpu()
    keys, values = keys.double().cpu().clone(), values.double().cpu().clone()
    half = case.width // 2

    def turned(x, b, weight):
        if norms is not None:
            x = (x / (x.square().mean() + norms.eps).sqrt() * weight.double().cpu()).to(dtype).double()
        c, s = cos[b % len(cos)], sin[b % len(sin)]
        return (x * c + torch.cat([-x[half:], x[:half]]) * s).to(dtype).double()

    out = torch.zeros(case.batch, case.heads, case.width, dtype=torch.float64)
    for b in range(case.batch):
        for g in range(case.groups):
            keys[b, g, case.place] = turned(heads[b, case.heads + g], b, norms and norms.key_W)
            values[b, g, case.place] = heads[b, case.heads + case.groups + g]
        for h in range(case.heads):
            g, upto = h // (case.heads // case.groups), case.place + 1
            query = turned(heads[b, h], b, norms and norms.query_W)
            scores = scale * (keys[b, g, :upto] @ query) + mask[b % len(mask), :upto]
            out[b, h] = scores.softmax(0) @ values[b, g, :upto]
    return out.view(case.batch, -1), keys[:, :, case.place], values[:, :, case.place]


WIDE = [  # heads of 128 numbers
    Case(16, 32, 4, 704, 128, 511, normed=True),
    Case(16, 32, 4, 704, 128, 512, normed=True, shared=True),
    Case(16, 32, 4, 704, 128, 703, normed=True),
    Case(3, 6, 2, 201, 128, 0),
    Case(1, 40, 8, 5000, 128, 4321, normed=True),
    Case(33, 12, 4, 100, 128, 63),
]


def check_in_bf16(run, case, device):
    """`run` as the custom kernels, thrice: against float64, the same bits again, the rest of the cache untouched."""
    *given, norms = drawn(case, torch.bfloat16, device)
    wanted, key, value = in_float64(case, *given, norms, 0.1, torch.bfloat16)
    before = [cache.clone() for cache in given[3:5]]
    first = None
    for _ in range(3):
        got = run(tuple(given), num_heads=case.heads, scale=0.1, norms=norms)
        torch.testing.assert_close(got.double().cpu(), wanted, atol=1e-2, rtol=2**-7)
        torch.testing.assert_close(given[3][:, :, case.place].double().cpu(), key, atol=1e-2, rtol=2**-7)
        assert torch.equal(given[4][:, :, case.place].double().cpu(), value)
        assert first is None or torch.equal(got, first)
        first = got
    for was, now in zip(before, given[3:5], strict=True):
        was[:, :, case.place] = now[:, :, case.place]
        assert torch.equal(was.nan_to_num(), now.nan_to_num())
