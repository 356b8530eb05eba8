import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thermoe.errors import DataError, TelemetryError
from thermoe.telemetry import ReplaySource, ThermalSignalGenerator
from thermoe.types import Kind, SysState


def drain(source):
    return [source.read() for _ in range(len(source))]


def state(time_s, **values):
    return SysState(time_s=time_s, wall_time_s=time_s, source="test", kind=Kind.MEASURED, **values)


@pytest.fixture
def recorded():
    return ThermalSignalGenerator(1).generate("failing_sensor", 8.0, 0.5)


def test_a_run_folder_comes_back_value_by_value_as_replayed(tmp_path, recorded):
    rows = [{"workload": "w", "seed": 0, "strategy": "s", "batch_index": 3} | s.as_dict() for s in recorded]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "telemetry.parquet")

    source = ReplaySource.from_file(tmp_path)
    replayed = drain(source)

    name = f"replay:{tmp_path / 'telemetry.parquet'}"
    assert replayed == [SysState.from_dict(s.as_dict() | {"kind": "replayed", "source": name}) for s in recorded]
    assert source.name == name
    assert any(None in (s.power_w, s.temp_c, s.energy_j, s.memory_temp_c, s.sm_clock_mhz) for s in replayed)
    with pytest.raises(TelemetryError, match="replay log exhausted after 17 states"):
        source.read()


def test_a_plain_csv_needs_only_time_and_one_reading(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("\ufefftime_s; power_w ;throttle_reasons;note\n0.0; 117.5;4;a\n0.1;;;\n\n0.2;nan;0\n", "utf-8")
    states = drain(ReplaySource.from_file(file))

    assert [s.power_w for s in states] == [117.5, None, None]
    assert [s.throttle_reasons for s in states] == [4, None, 0]
    assert [s.time_s for s in states] == [0.0, 0.1, 0.2]
    assert [s.wall_time_s for s in states] == [0.0, 0.1, 0.2]
    assert {s.kind for s in states} == {Kind.REPLAYED}
    assert isinstance(states[0].throttle_reasons, int)


def test_the_end_can_be_held():
    source = ReplaySource([state(0.0, power_w=1.0), state(1.0, power_w=2.0)], on_end="hold")
    assert [source.read().power_w for _ in range(5)] == [1.0, 2.0, 2.0, 2.0, 2.0]


def test_a_clock_that_starts_again_goes_on():
    times = [0.0, 0.5, 1.0, 0.0, 0.5, 0.2]
    source = ReplaySource([state(t) for t in times])
    assert [s.time_s for s in drain(source)] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "is empty"),
        ("blank.csv", "\n \n", "is empty"),
        ("header.csv", "time_s,power_w\n", "no rows"),
        ("foreign.csv", "a,b\n1,2\n", "not a telemetry log"),
        ("times.csv", "time_s\n1\n", "not a telemetry log"),
        ("words.csv", "time_s,power_w\n0,5\n1,lots\n", r"row 2, power_w: 'lots'"),
        ("untimed.csv", "time_s,power_w\n0,5\n,6\n", r"row 2.*time_s is missing"),
        ("broken.parquet", "PAR1 and then nothing", "not a whole Parquet file"),
    ],
)
def test_a_file_that_is_no_log_is_one_clear_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        ReplaySource.from_file(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_truncated_parquet_binary_csv_and_missing_files_are_refused(tmp_path, recorded):
    file = tmp_path / "telemetry.parquet"
    pq.write_table(pa.Table.from_pylist([s.as_dict() for s in recorded]), file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="Parquet"):
        ReplaySource.from_file(file)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="as text"):
        ReplaySource.from_file(tmp_path / "binary.csv")
    with pytest.raises(DataError, match="no file"):
        ReplaySource.from_file(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no states"):
        ReplaySource([])
