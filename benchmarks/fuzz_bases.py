"""Whole files of every kind that `thermoe parse` reads, small and synthetic: what the fuzzer mutates."""

import csv
import gzip
import io
import json
import sqlite3
from pathlib import Path

EPOCH_NS = 1_700_000_000_000_000_000
_KERNELS = 120
_PROCESS = 0x1000001 << 24
_TABLES = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE META_DATA_EXPORT (name TEXT NOT NULL, value TEXT);
CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs INTEGER, utcTime TEXT, localTime TEXT);
CREATE TABLE TARGET_INFO_GPU (id INTEGER NOT NULL, name TEXT, busLocation TEXT, uuid TEXT, cuDevice INTEGER);
CREATE TABLE TARGET_INFO_CUDA_DEVICE (gpuId INTEGER, cudaId INTEGER NOT NULL, pid INTEGER NOT NULL, uuid TEXT);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, text TEXT,
  globalTid INTEGER, textId INTEGER, domainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, globalTid INTEGER,
  correlationId INTEGER, nameId INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
  contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
  demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER, registersPerThread INTEGER NOT NULL,
  gridX INTEGER NOT NULL, gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL,
  blockX INTEGER NOT NULL, blockY INTEGER NOT NULL, blockZ INTEGER NOT NULL, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
  streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, graphId INTEGER NOT NULL);
CREATE TABLE TARGET_INFO_GPU_METRICS (typeId INTEGER NOT NULL, metricId INTEGER NOT NULL, metricName TEXT NOT NULL);
CREATE TABLE GPU_METRICS (timestamp INTEGER NOT NULL, typeId INTEGER NOT NULL, metricId INTEGER NOT NULL,
  value INTEGER NOT NULL);
CREATE TABLE GENERIC_EVENT_TYPES (typeId INTEGER NOT NULL PRIMARY KEY, sourceId INTEGER NOT NULL,
  nameId INTEGER NOT NULL);
CREATE TABLE GENERIC_EVENTS (genericEventId INTEGER NOT NULL PRIMARY KEY, timestamp INTEGER NOT NULL,
  typeId INTEGER NOT NULL, data TEXT);
CREATE TABLE GENERIC_EVENT_DATA (genericEventId INTEGER NOT NULL, fieldIdx INTEGER NOT NULL, intVal INTEGER,
  uintVal INTEGER, doubleVal REAL);
"""


def nsys(path: Path) -> None:
    """An nsys export with kernels, launches, ranges, metrics, graphs and power."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA page_size=1024")
    connection.executescript(_TABLES)
    run = connection.execute
    names = ("gemm", "void ns::softmax<int>(int)", "op:expert_mlp", "GPU power draw")
    for key, text in enumerate(names):
        run("INSERT INTO StringIds VALUES (?, ?)", (key, text))
    run("INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_SCHEMA_VERSION', '3.25.0')")
    run("INSERT INTO TARGET_INFO_SESSION_START_TIME VALUES (?, '', '')", (EPOCH_NS,))
    run("INSERT INTO TARGET_INFO_GPU VALUES (0, 'GPU', '0000:3b:00.0', 'da169147-ab12-6528-f15a-7efd8bb7efbe', 0)")
    run("INSERT INTO TARGET_INFO_CUDA_DEVICE VALUES (0, 0, 1, NULL)")
    run("INSERT INTO TARGET_INFO_GPU_METRICS VALUES (0, 1, 'SMs Active [Throughput %]')")
    run("INSERT INTO GENERIC_EVENT_TYPES VALUES (1, 1, 3)")
    for i in range(_KERNELS):
        at = i * 10_000_000
        place = (at, at + 6_000_000, i % 2 * 0, 1, 7 + i % 3, i, _PROCESS)
        run(
            f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES ({', '.join('?' * 18)})",
            (*place, 1, i % 2, None, 32, *[2] * 6, None),
        )
        run("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, ?, ?, 0)", (at - 900, at - 800, _PROCESS | 1, i))
        text = ("op:combine", None)[i % 2]
        run("INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, ?, ?, 2, 0)", (at - 1000, at - 700, text, _PROCESS | 1))
        run("INSERT INTO GPU_METRICS VALUES (?, 0, 1, ?)", (at, i % 100))
        run("INSERT INTO GENERIC_EVENTS VALUES (?, ?, 1, NULL)", (i, at))
        run("INSERT INTO GENERIC_EVENT_DATA VALUES (?, 0, NULL, 300000, NULL)", (i,))
    run("INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (0, 1000, 0, 7, 1, ?, 1)", (_PROCESS,))
    connection.commit()
    connection.close()


def ncu_long(path: Path) -> None:
    """An ncu table with a row per metric, after lines of noise."""
    head = ["ID", "Process ID", "Process Name", "Kernel Name", "Stream", "Block Size", "Grid Size", "Device"]
    rows = [[*head, "Section Name", "Metric Name", "Metric Unit", "Metric Value"]]
    metrics = [("Duration", "ns", "21,058,944"), ("DRAM Throughput", "%", "61.84"), ("SM Frequency", "Ghz", "1.755")]
    for i in range(20):
        start = [str(i), "6153", "python", "gemm<int>(int, float)", "7", "(256, 1, 1)", "(1024, 1, 1)", "0"]
        rows += [[*start, "Speed", *metric] for metric in metrics]
    path.write_text(f"==PROF== Connected\n{_as_csv(rows)}", encoding="utf-8")


def ncu_wide(path: Path) -> None:
    """An ncu table with a row per kernel, numbers as Germans write them."""
    head = ["ID", "Process ID", "Kernel Name", "Stream", "Block Size", "Grid Size", "Device"]
    rows = [[*head, "gpu__time_duration.sum", "dram__bytes_read.sum", "launch__registers_per_thread"]]
    rows.append([*[""] * len(head), "usecond", "Kbyte", "register/thread"])
    start = ["6153", "gemm<int>(int, float)", "7", "(256, 1, 1)", "(1024, 1, 1)", "0"]
    rows += [[str(i), *start, "1.234,5", "27.595.520", "32"] for i in range(30)]
    path.write_text(_as_csv(rows), encoding="utf-8")


def trace(path: Path) -> None:
    """A Chrome trace of torch.profiler, gzipped if its name says so."""
    events: list[dict[str, object]] = []
    for i in range(60):
        at = 100.0 * i
        place = {"ph": "X", "pid": 7, "tid": 7}
        events.append(place | {"cat": "user_annotation", "name": "op:expert_mlp", "ts": at, "dur": 20.5})
        events.append(
            place | {"cat": "cuda_runtime", "name": "launch", "ts": at + 5, "dur": 2, "args": {"correlation": i}}
        )
        facts = {"device": 0, "stream": 7, "correlation": i, "grid": [4, 1, 1], "block": [128, 1, 1]}
        kernel = {"ph": "X", "cat": "kernel", "name": "void gemm<4>(int)", "pid": 0, "tid": 7}
        events.append(kernel | {"ts": at + 40, "dur": 33.25, "args": facts})
    text = json.dumps({"schemaVersion": 1, "baseTimeNanoseconds": EPOCH_NS, "traceEvents": events}).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def power_log(path: Path) -> None:
    """A log of power that covers the kernels of `nsys`."""
    rows = [["timestamp_ns", "index", "uuid", "power_w", "energy_j"]]
    uuid = "GPU-da169147-ab12-6528-f15a-7efd8bb7efbe"
    rows += [
        [str(EPOCH_NS + i * 50_000_000), "0", uuid, f"{300 + i % 7}.5", f"{1000 + 15 * i}.25"] for i in range(-2, 40)
    ]
    path.write_text(_as_csv(rows), encoding="utf-8")


def _as_csv(rows: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue()
