"""Arguments that the commands on costs share."""

from pathlib import Path
from typing import Annotated

import tyro

Files = Annotated[
    tyro.conf.Positional[tuple[Path, ...]],
    tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="(one or more)"),
]
"""Files to read, at least one: the commands refuse none, with what to give."""
