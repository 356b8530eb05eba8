"""Choice of the next token on the device, the way `generate()` chooses it.

B sequences, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.types import NUMBER


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen; the default takes the likeliest.

    Attributes:
        do_sample: Draw from the distribution instead, with torch's generator of the device.
        temperature: Divides the logits.
        top_k: Draw from the so many likeliest tokens; 0 from all.
        top_p: Draw from the fewest tokens that hold this share of the probability.

    Raises:
        ConfigError: A number out of range.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.top_k, self.top_p)
        if not all(isinstance(value, NUMBER) for value in numbers) or not (
            self.temperature > 0
            and self.top_k >= 0
            and isinstance(self.top_k, int)
            and self.top_k is not True
            and 0 < self.top_p <= 1
        ):
            raise ConfigError(
                f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: needed temperature above 0, "
                "top_k a whole number of 0 or more, top_p above 0 and at most 1"
            )

    def choose(self, logits_BV: Tensor) -> Tensor:
        """(B,) token ids; never waits for the device. `logits_BV` is float32."""
        if not self.do_sample:
            return logits_BV.argmax(dim=-1)
        scores_BV = self._kept(logits_BV if self.temperature == 1 else logits_BV / self.temperature)
        # The draw of `torch.multinomial`, argmax of softmax / noise, without its checks, which wait for the device. In
        # logarithms it needs no softmax, the dearest operation behind the last layer.
        noise_BV = torch.empty_like(scores_BV).exponential_()
        return (scores_BV - noise_BV.log_()).argmax(dim=-1)

    def _kept(self, scores_BV: Tensor) -> Tensor:
        """Scores with the tokens that cannot be drawn at -inf."""
        if 0 < self.top_k < scores_BV.shape[-1]:
            least_B1 = scores_BV.topk(int(self.top_k), dim=-1).values[:, -1:]
            scores_BV = scores_BV.masked_fill(scores_BV < least_B1, float("-inf"))
        if self.top_p < 1:
            sorted_BV, order_BV = scores_BV.sort(dim=-1)
            dropped_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            dropped_BV[:, -1] = False  # the likeliest always stays
            scores_BV = scores_BV.masked_fill(dropped_BV.scatter(1, order_BV, dropped_BV), float("-inf"))
        return scores_BV
