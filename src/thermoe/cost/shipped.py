"""The cost databases and the model that come with the package, and finding a database by its bare name."""

from pathlib import Path

_DATA = Path(__file__).parent / "data"
SUFFIX = ".costs.json"
SHIPPED = f"h200{SUFFIX}"
"""The one that `KernelCostModel.shipped` is fitted to."""


def shipped_model() -> Path:
    """The model that was fitted to the shipped database by `thermoe fit`."""
    return _DATA / "h200.model.json"


def shipped_databases() -> dict[str, Path]:
    """Path of each by its file name."""
    return {path.name: path for path in sorted(_DATA.glob(f"*{SUFFIX}"))}


def located(path: Path) -> Path:
    """A shipped database for its bare name, such as `h200` or `h200.costs.json`, where no file here has it."""
    if path.exists() or path.name != str(path):
        return path
    shipped = shipped_databases()
    return shipped.get(path.name) or shipped.get(f"{path.name}{SUFFIX}") or path
