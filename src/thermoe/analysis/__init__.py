"""Run folders in, answers out: summary figures, statistics, figures, tables and the report."""

from thermoe.analysis.load import RunFolder, load_runs
from thermoe.analysis.report import write_report
from thermoe.analysis.summary import summarise

__all__ = ["RunFolder", "load_runs", "summarise", "write_report"]
