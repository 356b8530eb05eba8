"""The routing policy once more, in float64 and loops, from the words of `thermoe.types.RoutingKnobs`."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Restated:
    ids: list[list[int]] = field(default_factory=list)  # of the kept slots, best first
    weights: list[list[float]] = field(default_factory=list)
    loaded: list[set[int]] = field(default_factory=list)  # by column
    margin: float = np.inf  # how near a threshold came to going the other way


def restate(ranks, gates, knobs, layer, top_k, columns, live, renormalise, scale) -> Restated:
    """`knobs` are host RoutingKnobs; `ranks` may hold -inf."""
    num_tokens, num_experts = ranks.shape
    result = Restated(ids=[[] for _ in range(num_tokens)], weights=[[] for _ in range(num_tokens)])
    allowed = {e for e in range(num_experts) if knobs.allowed[layer, e]}
    score = ranks + knobs.bias[layer]

    def best(token: int, experts: set[int]) -> list[int]:
        permitted = [e for e in sorted(experts) if np.isfinite(ranks[token, e])]
        return sorted(permitted, key=lambda e: -score[token, e])[:top_k]

    own = [best(token, allowed) for token in range(num_tokens)]
    for column in range(columns):
        tokens = range(column, num_tokens, columns)
        loaded = set(allowed)
        if knobs.union:
            loaded = _loaded(own, gates, knobs, layer, [t for t in tokens if live[t]], allowed, result)
            result.loaded.append(loaded)
        for token in tokens:
            chosen = best(token, loaded) or [max(sorted(loaded), key=lambda e: gates[token, e])]
            kept = _kept(chosen, gates[token], knobs, layer, result)
            total = sum(gates[token, e] for e in kept) if renormalise else 1.0
            result.ids[token] = kept
            result.weights[token] = [gates[token, e] / total * scale for e in kept]
    return result


def _loaded(own, gates, knobs, layer, tokens, allowed, result) -> set[int]:
    value = dict.fromkeys(allowed, 0.0)
    protected: set[int] = set()
    for token in tokens:
        mass = sum(gates[token, e] for e in own[token])
        protected |= set(own[token][: knobs.protected_k0[layer]])
        for e in own[token]:
            value[e] += (gates[token, e] / mass) ** knobs.value_power
    value = {e: v * np.exp(knobs.bias[layer, e]) for e, v in value.items()}
    loaded = set(protected)
    for e, v in value.items():
        threshold = knobs.price[layer] * knobs.cost[layer, e]
        if v > 0 and np.isfinite(threshold):
            result.margin = min(result.margin, abs(v - threshold) if threshold > 0 else np.inf)
            if v >= threshold:
                loaded.add(e)
    ranked = sorted((e for e in value if value[e] > 0), key=lambda e: -value[e])
    count = knobs.max_experts[layer]
    loaded |= set(ranked[:count])
    if 0 < count < len(ranked):
        result.margin = min(result.margin, value[ranked[count - 1]] - value[ranked[count]])
    return loaded or set(allowed)


def _kept(chosen, gates, knobs, layer, result) -> list[int]:
    mass, before, kept = sum(gates[e] for e in chosen), 0.0, []
    for slot, e in enumerate(chosen):
        enough, small = knobs.gate_mass[layer] * mass, knobs.skip_ratio[layer] * gates[chosen[0]]
        if slot:
            result.margin = min(result.margin, abs(before - enough), abs(gates[e] - small))
        fits = slot < knobs.top_k[layer] and gates[e] >= small
        if slot == 0 or (fits and (knobs.gate_mass[layer] >= 1 or before < enough)):
            kept.append(e)
        before += gates[e]
    return kept
