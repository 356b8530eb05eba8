import pytest

from thermoe.cost.database import CostDatabase
from thermoe.cost.database_command import CostsImport
from thermoe.cost.simulator_table import read_simulator_table
from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind


def read(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return read_simulator_table(path, gpu="A100", simulator="llmcompass")


def test_products_with_and_without_power(tmp_path):
    costs = read(tmp_path, "m,n,k,latency_ms,power_w\n16,512,256,0.5,300\n32,512,256,1,\n")
    first, second = costs.rows
    assert (first.op, first.impl, first.kind) == ("gemm", "llmcompass", Kind.PREDICTED)
    assert (first.routed_rows, first.inter_size, first.hidden_size) == (16, 512, 256)
    assert first.latency_us == 500.0
    assert first.energy_mj == pytest.approx(150.0)
    assert (second.energy_mj, second.power_w) == (None, None)
    assert first.device.gpu == "A100"


def test_layers_touch_what_random_routing_touches_unless_the_table_says(tmp_path):
    columns = "num_tokens,hidden_size,inter_size,topk,num_experts,latency_s"
    costs = read(tmp_path, f"{columns}\n16,2048,768,8,128,1e-4\n")
    assert (costs.rows[0].op, costs.rows[0].routed_rows, costs.rows[0].active_experts) == ("expert_mlp", 128, 82)
    costs = read(tmp_path, f"{columns},distinct_experts\n16,2048,768,8,128,1e-4,40\n")
    assert costs.rows[0].active_experts == 40


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("m,n,k,latency_ms\n", "no rows"),
        ("m,n,latency_ms\n1,2,3\n", "lacks the column"),
        ("m,n,k\n1,2,3\n", "lacks a latency"),
        ("m,n,k,latency_ms\n1,2,x,3\n", "row 0"),
        ("m,n,k,latency_ms\n1,2,2.5,3\n", "whole number"),
        ("m,n,k,latency_ms\n1,2,3,-3\n", "positive"),
        ("m,n,k,latency_ms\n1,2,3,4\n1,2,3,\n", "row 1"),
        ("m,n,k,latency_ms\n1,2,1e999,4\n", "row 0"),
        ("m,n,k,latency_ms\n1,2,3,4\n1,2,3,5\n", "row 1 is .* again"),
        ("op,m,n,k,latency_ms\n,1,2,3,4\n", "op nan is not known"),
        ("dtype,m,n,k,latency_ms\nfp7,1,2,3,4\n", "dtype fp7 is not known"),
        ("num_tokens,hidden_size,inter_size,topk,num_experts,latency_s\n4,64,64,16,8,1\n", "more than the 8 experts"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(DataError, match=words) as err:
        read(tmp_path, text)
    assert "\n" not in str(err.value)


def test_command_writes_a_database(tmp_path):
    (tmp_path / "t.csv").write_text("m,n,k,latency_ms\n16,512,256,0.5\n")
    out = tmp_path / "x.costs.json"
    assert CostsImport(table=tmp_path / "t.csv", gpu="A100", simulator="accelwattch", out=out).execute() == 0
    assert len(CostDatabase.load(out)) == 1


def test_the_same_row_twice_counts_once_and_names_are_needed(tmp_path):
    assert len(read(tmp_path, "m,n,k,latency_ms\n1,2,3,4\n1,2,3,4\n")) == 1
    with pytest.raises(ConfigError, match="name both"):
        read_simulator_table(tmp_path / "table.csv", gpu=" ", simulator="llmcompass")


def test_command_does_not_write_over_its_table(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("m,n,k,latency_ms\n16,512,256,0.5\n")
    with pytest.raises(ConfigError, match="would be lost"):
        CostsImport(table=table, gpu="A100", simulator="s", out=table).execute()
    assert table.read_text().startswith("m,n,k")
