"""A format has one name in what is written, and is found by the other names too."""

import pytest
import torch

from thermoe import cli
from thermoe.cost.cases import DTYPE_BITS
from thermoe.cost.database import CostDatabase
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.errors import ConfigError, CostError
from thermoe.experiments import choices
from thermoe.experiments.config import RunConfig
from thermoe.experts import ExpertFormat, SimpleExpert
from thermoe.experts.mixed import compressed
from thermoe.format_names import format_name
from thermoe.integrations.experts_quantised import EXPERT_FORMATS, precision_of
from thermoe.profiling.candidates import expert_case
from thermoe.profiling.case import WEIGHT_BITS
from thermoe.types import NAMED_SHAPES, Kind

OTHERS = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "fp8_blocks": "fp8_block"}
QWEN3 = NAMED_SHAPES["qwen3-30b-a3b"]


def test_every_name_that_is_listed_somewhere_is_the_one_that_is_written():
    listed = {*DTYPE_BITS, *WEIGHT_BITS, *EXPERT_FORMATS, *ExpertFormat, *choices.EXPERT_FORMATS, *choices.DTYPES}
    assert [name for name in listed if format_name(name) != name] == []
    assert {format_name(other) for other in OTHERS} <= listed
    assert {other: format_name(other) for other in OTHERS} == OTHERS


def test_a_run_takes_both_and_writes_one():
    given = {"model": "m", "text": ("t",), "experts": "fp8_blocks", "dtype": "bf16"}
    written = RunConfig.from_mapping(given).as_mapping()
    assert (written["experts"], written["dtype"]) == ("fp8_block", "bfloat16")
    assert RunConfig.from_mapping(written).as_mapping() == written
    with pytest.raises(ConfigError, match=r"int5.*choose from int2, int4, int8, fp8, fp8_block,"):
        RunConfig.from_mapping(given | {"experts": "int5"})
    with pytest.raises(ConfigError, match="choose from auto, float32, bfloat16"):
        RunConfig.from_mapping(given | {"dtype": "int5"})


def test_experts_take_both():
    expert = SimpleExpert(128, 128)
    assert ExpertFormat("fp8_blocks") is ExpertFormat.FP8_BLOCK
    held, wanted = (compressed(expert, name).state_dict() for name in ("fp8_blocks", "fp8_block"))
    assert all(torch.equal(held[key], wanted[key]) for key in wanted)
    assert precision_of("fp8_blocks") == 8
    with pytest.raises(ConfigError, match="choose from dense, fp8, fp8_block,"):
        compressed(expert, "fp8_rows")


@pytest.mark.parametrize(("other", "name"), OTHERS.items())
def test_the_cost_model_takes_both(other, name):
    model = KernelCostModel()
    for ask in (model.predict, model.predict_many):
        assert ask("expert_mlp", QWEN3, 128, 82, dtype=other) == ask("expert_mlp", QWEN3, 128, 82, dtype=name)
    with pytest.raises(CostError, match="choose from float32, bfloat16, float16, fp8, fp8_block,"):
        model.predict("expert_mlp", QWEN3, 128, 82, dtype="fp8_rows")


def test_cases_take_both_and_are_the_same():
    one, other = (expert_case("expert_mlp", "loop", (64, 32, 8, 2), 32, 4, dtype=d) for d in ("bf16", "bfloat16"))
    assert one == other
    assert one.key == other.key
    with pytest.raises(ConfigError, match="choose from float32, bfloat16"):
        expert_case("expert_mlp", "loop", (64, 32, 8, 2), 32, 4, dtype="fp8_rows")


def test_cost_files_take_both_and_hold_one(tmp_path, capsys):
    device = DeviceKey(gpu="Test GPU", driver="", torch="", triton="", kernel_revision="1")
    figures = {"skew": 1.0, "latency_us": 5.0, "latency_low_us": 5.0, "latency_high_us": 5.0, "spread_pct": 0.0}
    counts = {"tokens": 16, "routed_rows": 128, "active_experts": 64, "repeats": 3}
    row = figures | counts | {"op": "expert_mlp", "impl": "x", "dtype": "bf16", "kind": str(Kind.MEASURED)}
    row |= {"shape": {"D": 64, "I": 32, "E": 64, "k": 8}, "input_distribution": "normal"}
    costs = CostDatabase([CostRow.from_dict(row, device)])
    assert costs.rows[0].dtype == "bfloat16"
    assert len(costs.select(dtype="bf16")) == 1
    costs.save(tmp_path / "a.costs.json")
    assert cli.main(["costs", "show", str(tmp_path / "a.costs.json"), "--dtypes", "bf16"]) == 0
    assert "bfloat16" in capsys.readouterr().out
    table = tmp_path / "table.csv"
    table.write_text("dtype,m,n,k,latency_ms\nbf16,1,2,3,4\nfp8_blocks,1,2,3,4\n", encoding="utf-8")
    out = tmp_path / "b.costs.json"
    options = ["--gpu", "NVIDIA A100", "--simulator", "sim", "--out", str(out)]
    assert cli.main(["costs", "import", str(table), *options]) == 0
    assert [r.dtype for r in CostDatabase.load(out).rows] == ["bfloat16", "fp8_block"]
