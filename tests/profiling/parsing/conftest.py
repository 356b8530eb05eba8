"""Tests here run commands of `benchmarks`, which lies in the root of the checkout and is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
