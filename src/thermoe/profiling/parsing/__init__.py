"""Reads what profilers write: nsys SQLite, ncu CSV, torch.profiler traces; one row per kernel, energy by wall clock."""

from thermoe.profiling.parsing.parse import parse_profiler_output, write_table
from thermoe.profiling.parsing.table import NothingToParseError, sum_by_operation

__all__ = ["NothingToParseError", "parse_profiler_output", "sum_by_operation", "write_table"]
