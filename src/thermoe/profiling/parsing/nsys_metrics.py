"""Hardware counters that nsys sampled (`--gpu-metrics-devices`), averaged over each kernel."""

import re

import numpy as np
import pandas as pd

from thermoe.profiling.parsing.sqlite_file import MISSING, SqliteFile
from thermoe.types import FloatArray, IntArray

#: Columns of the table by the names that nsys gives its metrics.
METRICS = (
    ("sm_active_pct", re.compile(r"^sms? active", re.IGNORECASE)),
    ("tensor_active_pct", re.compile(r"^tensor active|^sm tensor", re.IGNORECASE)),
    ("dram_read_pct", re.compile(r"^dram read", re.IGNORECASE)),
    ("dram_write_pct", re.compile(r"^dram write", re.IGNORECASE)),
    ("dram_throughput_pct", re.compile(r"^dram (bandwidth|throughput|active)", re.IGNORECASE)),
)
#: A sample speaks for the time since the one before, but not for longer than this [ns].
_LONGEST_NS = 1_000_000_000
_DEVICE_BITS = 0xFF


def add_metrics(file: SqliteFile, raw: dict[str, IntArray], kernels: pd.DataFrame) -> None:
    """Add the columns of `METRICS` that the export has: means over each kernel's span, on its device."""
    samples_table, names_table = file.find("GPU_METRICS"), file.find("TARGET_INFO_GPU_METRICS")
    if samples_table is None or names_table is None:
        return
    names = file.rows(names_table, ["typeId", "metricId", "metricName"])
    samples = file.integers(samples_table, ["timestamp", "typeId", "metricId", "value"])
    present = {
        key: values[(samples["timestamp"] != MISSING) & (samples["value"] != MISSING)]
        for key, values in samples.items()
    }
    gpu = kernels["gpu_id"].to_numpy(np.int64)
    gpu = np.where(gpu == MISSING, raw["deviceId"], gpu)
    for column, pattern in METRICS:
        wanted = {(row["typeId"], row["metricId"]) for row in names if pattern.match(str(row["metricName"] or ""))}
        if wanted:
            kernels[column] = _means(present, wanted, gpu, raw["start"], raw["end"])


def _means(
    samples: dict[str, IntArray], wanted: set[tuple[int, int]], gpu: IntArray, start_ns: IntArray, end_ns: IntArray
) -> FloatArray:
    result = np.full(start_ns.shape, np.nan)
    for type_id, metric_id in sorted(pair for pair in wanted if all(isinstance(part, int) for part in pair)):
        chosen = (samples["typeId"] == type_id) & (samples["metricId"] == metric_id)
        here = gpu == (type_id & _DEVICE_BITS)
        if chosen.sum() >= 2 and here.any():
            time_ns, first = np.unique(samples["timestamp"][chosen], return_index=True)
            values = samples["value"][chosen][first].astype(np.float64)
            result[here] = mean_over(time_ns, values, start_ns[here], end_ns[here])
    return result


def mean_over(time_ns: IntArray, values: FloatArray, start_ns: IntArray, end_ns: IntArray) -> FloatArray:
    """Time-weighted mean over each span (K,), a sample standing for the time since the one before it.

    NaN where a span reaches beyond the samples, has no length, or meets a hole of more than a second.
    """
    if time_ns.size < 2:
        return np.full(start_ns.shape, np.nan)
    steps_ns = np.diff(time_ns)
    origin_ns = time_ns[0]
    area = np.concatenate([[0.0], np.cumsum(values[1:] * steps_ns)])
    holes = np.concatenate([[0.0], np.cumsum(steps_ns > _LONGEST_NS)])
    at = time_ns - origin_ns
    low, high = np.interp(start_ns - origin_ns, at, area), np.interp(end_ns - origin_ns, at, area)
    broken = np.interp(end_ns - origin_ns, at, holes) > np.interp(start_ns - origin_ns, at, holes)
    length_ns = (end_ns - start_ns).astype(np.float64)
    known = (start_ns >= origin_ns) & (end_ns <= time_ns[-1]) & (length_ns > 0) & ~broken
    means: FloatArray = np.divide(high - low, length_ns, out=np.full(start_ns.shape, np.nan), where=known)
    return means
