"""Builds synthetic nsys exports of any schema version, table by table; only what a test adds exists."""

import sqlite3
from pathlib import Path
from typing import Any

PROCESS = 0x1000001 << 24  # hardware id, then process id 1
OTHER_PROCESS = 0x1000002 << 24

#: Columns by the schema version that brought them; in the order of the files that show them.
TABLES: dict[str, list[tuple[str, str]]] = {
    "CUPTI_ACTIVITY_KIND_KERNEL": [
        *((name, "0") for name in ("start", "end", "deviceId", "contextId")),
        ("greenContextId", "3.20.2"),
        *((name, "0") for name in ("streamId", "correlationId", "globalPid")),
        *((name, "0") for name in ("demangledName", "shortName", "mangledName")),
        *((name, "0") for name in ("launchType", "cacheConfig", "registersPerThread")),
        *((name, "0") for name in ("gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ", "graphNodeId")),
        *((name, "3.24.14") for name in ("qmdBulkReleaseDone", "graphId", "clusterX", "clusterY", "clusterZ")),
        ("tensorSizeMinusOneElements", "3.25.0"),
    ],
    "CUPTI_ACTIVITY_KIND_RUNTIME": [
        (name, "0") for name in ("start", "end", "eventClass", "globalTid", "correlationId", "nameId", "returnValue")
    ],
    "CUPTI_ACTIVITY_KIND_MEMSET": [(name, "0") for name in ("start", "end", "deviceId", "streamId", "bytes")],
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": [
        (name, "0") for name in ("start", "end", "deviceId", "streamId", "correlationId", "globalPid", "graphId")
    ],
    "NVTX_EVENTS": [
        *((name, "0") for name in ("start", "end", "eventType", "text", "globalTid", "textId", "domainId")),
        ("binaryData", "3.17.2"),
    ],
    "TARGET_INFO_SESSION_START_TIME": [
        *((name, "0") for name in ("utcEpochNs", "utcTime", "localTime")),
        ("systemClockNs", "3.24.7"),
        ("sessionStartCntVctNs", "3.28.1"),
    ],
    "TARGET_INFO_GPU": [
        *((name, "0") for name in ("vmId", "id", "name", "busLocation", "uuid", "cuDevice")),
        ("numaNodeId", "3.28.1"),
    ],
    "TARGET_INFO_CUDA_DEVICE": [
        *((name, "3.17.2") for name in ("gpuId", "cudaId", "pid")),
        *((name, "3.24.7") for name in ("uuid", "numMultiprocessors")),
    ],
    "TARGET_INFO_GPU_METRICS": [(n, "0") for n in ("typeId", "sourceId", "typeName", "metricId", "metricName")],
    "GPU_METRICS": [
        ("rawTimestamp", "3.28.1"),
        *((name, "0") for name in ("timestamp", "typeId", "metricId", "value")),
    ],
    "GENERIC_EVENT_SOURCES": [(name, "0") for name in ("sourceId", "nameId", "data")],
    "GENERIC_EVENT_TYPES": [(name, "0") for name in ("typeId", "sourceId", "nameId", "data")],
    "GENERIC_EVENTS": [(name, "0") for name in ("genericEventId", "rawTimestamp", "timestamp", "typeId", "data")],
    "GENERIC_EVENT_DATA": [(name, "0") for name in ("genericEventId", "fieldIdx", "intVal", "uintVal", "doubleVal")],
}
SCHEMAS = ("2.9.1", "3.0.0", "3.1.2", "3.17.2", "3.20.2", "3.24.7", "3.24.14", "3.25.0", "3.28.1", "3.99.0", "7.0.0")


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


class NsysFile:
    """A file being written."""

    def __init__(self, path: Path, schema: str = "3.25.0") -> None:
        self.path, self._schema = path, schema
        self.connection = sqlite3.connect(path)
        self._texts: dict[str, int] = {}
        is_old = version(schema) < (3, 17)
        self._create("EXPORT_META_DATA" if is_old else "META_DATA_EXPORT", ["name", "value"])
        self._insert("EXPORT_META_DATA" if is_old else "META_DATA_EXPORT", name="EXPORT_SCHEMA_VERSION", value=schema)
        self.connection.execute("CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL)")

    def text(self, value: str) -> int:
        """Id of a registered string."""
        if value not in self._texts:
            self._texts[value] = 100 + len(self._texts)
            self._insert("StringIds", id=self._texts[value], value=value)
        return self._texts[value]

    def table(self, name: str) -> None:
        """Create a table of the schema, empty."""
        if name not in {row[0] for row in self.connection.execute("SELECT name FROM sqlite_master")}:
            self._create(name, [c for c, since in TABLES[name] if version(since) <= version(self._schema)])

    def add(self, table: str, **values: Any) -> None:
        """Add a row; columns that the schema does not have yet are left out."""
        self.table(table)
        known = {row[1] for row in self.connection.execute(f"PRAGMA table_info({table})")}
        self._insert(table, **{name: value for name, value in values.items() if name in known})

    def kernel(self, name: str, start: int, end: int, **values: Any) -> None:
        """Add a kernel of process 1 on device 0, stream 7; its launch, if it has a correlationId, a us before."""
        row = {"deviceId": 0, "streamId": 7, "globalPid": PROCESS, "contextId": 1, "registersPerThread": 32}
        row |= dict.fromkeys(("gridX", "gridY", "blockX"), 2) | dict.fromkeys(("gridZ", "blockY", "blockZ"), 1)
        names = {"shortName": self.text(name), "demangledName": self.text(f"void {name}<int>(int)")}
        self.add("CUPTI_ACTIVITY_KIND_KERNEL", start=start, end=end, **row | names | values)

    def launch(self, correlation: int, at: int, process: int = PROCESS, thread: int = 1) -> None:
        """Add the call that launched a kernel."""
        tid = process | thread
        row = {"start": at, "end": at + 5, "globalTid": tid, "correlationId": correlation, "nameId": 1, "eventClass": 0}
        self.add("CUPTI_ACTIVITY_KIND_RUNTIME", **row)

    def range(
        self, name: str, start: int, end: int | None, process: int = PROCESS, thread: int = 1, **more: Any
    ) -> None:
        """Add a push/pop range with its text in the row."""
        row = {"start": start, "end": end, "eventType": 59, "text": name, "globalTid": process | thread}
        self.add("NVTX_EVENTS", **row | more)

    def session(self, utc_epoch_ns: int) -> None:
        """Say when the session began."""
        self.add("TARGET_INFO_SESSION_START_TIME", utcEpochNs=utc_epoch_ns, utcTime="", localTime="")

    def save(self) -> Path:
        """Write and close."""
        self.connection.commit()
        self.connection.close()
        return self.path

    def _create(self, table: str, columns: list[str]) -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        self.connection.execute(f"CREATE TABLE {table} ({names})")

    def _insert(self, table: str, **values: Any) -> None:
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))
