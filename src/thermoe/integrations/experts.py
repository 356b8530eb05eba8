"""Thermoe's name in the experts interface of Transformers."""

EXPERTS_IMPLEMENTATION = "thermoe"


def register_experts() -> str:
    """Make `experts_implementation="thermoe"` known to Transformers, and return that name.

    The computation is the library's own grouped matrix product. Under its own name `generate()`
    leaves it alone: on a GPU that function swaps `grouped_mm` for an implementation that copies the
    weights of every token's experts. Calling this again changes nothing.
    """
    from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

    ExpertsInterface.register(EXPERTS_IMPLEMENTATION, grouped_mm_experts_forward)
    return EXPERTS_IMPLEMENTATION
