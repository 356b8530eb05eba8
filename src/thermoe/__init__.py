"""Energy-proportional Mixture-of-Experts inference: routing that knows what every expert costs.

The import is light: no torch, no NVML, no CUDA, no thread. `attach` brings in what it needs when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thermoe.integrations.transformers import attach

__version__ = "0.1.0"
__all__ = ["__version__", "attach"]

_LAZY = {"attach": "thermoe.integrations.transformers"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'thermoe' has no attribute {name!r}: it offers {', '.join(__all__)}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
