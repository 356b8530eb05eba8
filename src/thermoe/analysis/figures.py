"""The figures of the report: which there are, in which order, and what is said where one cannot be drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure

from thermoe.analysis.figures_adaptation import adaptation_losses, price_over_time
from thermoe.analysis.figures_cost import (
    energy_per_token,
    energy_saved,
    latency_against_energy,
    perplexity_against_energy,
    routing_overhead,
)
from thermoe.analysis.figures_experts import distinct_by_layer, expert_usage, expert_usage_shift
from thermoe.analysis.figures_time import latency_distribution, power_over_time, temperature_over_time
from thermoe.analysis.style import RC
from thermoe.analysis.view import RunView

Draw = Callable[[Sequence[RunView]], tuple[Figure, str] | None]


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure the report knows how to draw from one run or, where `compares_runs`, from several."""

    name: str
    title: str
    draw: Draw
    needs: str
    compares_runs: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn figure and one sentence on what it shows; without the data, no figure and what it needs."""

    name: str
    title: str
    caption: str
    figure: Figure | None


PLOTS: tuple[Plot, ...] = (
    Plot("energy_saved", "Energy saved against baseline", energy_saved, "baseline and energies", True),
    Plot("energy_per_token", "Energy per token", energy_per_token, "energies", True),
    Plot(
        "perplexity_energy", "Perplexity against energy", perplexity_against_energy, "perplexities and energies", True
    ),
    Plot("latency_energy", "Step latency against energy", latency_against_energy, "latencies and energies", True),
    Plot("power", "Power over time", power_over_time, "power samples"),
    Plot("temperature", "Temperature over time", temperature_over_time, "temperature samples"),
    Plot("latency", "Latency distribution", latency_distribution, "step latencies"),
    Plot("distinct_experts", "Distinct experts by layer", distinct_by_layer, "distinct experts by layer"),
    Plot("expert_usage", "Expert usage", expert_usage, "tokens per expert"),
    Plot("expert_usage_shift", "Shift of expert usage", expert_usage_shift, "baseline and tokens per expert"),
    Plot("adaptation", "Adaptation losses over time", adaptation_losses, "losses of an adapting strategy"),
    Plot("price", "Price over time", price_over_time, "prices that differ from zero"),
    Plot("overhead", "Overhead of routing and adapting", routing_overhead, "timed routing"),
)


def draw(plot: Plot, views: Sequence[RunView]) -> Drawing:
    """Draw one figure in the report's style."""
    with rc_context(RC):
        drawn = plot.draw(views)
    if drawn is None:
        return Drawing(plot.name, plot.title, f"needs {plot.needs}", None)
    return Drawing(plot.name, plot.title, drawn[1], drawn[0])
