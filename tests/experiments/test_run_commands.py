"""The commands as they are typed: what they print, write and refuse."""

import json
import shutil

import pandas as pd
import pytest

from thermoe import cli
from thermoe.commands import conclude
from thermoe.errors import ThermoeError

SMALL = ["--max-tokens", "80", "--batch-size", "2", "--block-size", "16"]


def text_options(tiny_model, tiny_text):
    return ["--model", str(tiny_model), "--text", str(tiny_text), *SMALL]


def test_run_prints_a_table_and_the_reports_path(tmp_path, tiny_model, tiny_text, capsys):
    out = tmp_path / "run"
    options = [*text_options(tiny_model, tiny_text), "--strategies", "opportunistic", "--csv", "--trace"]
    assert cli.main(["run", *options, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "baseline is added" in said
    assert "teacher_forced:words (simulated)" in said
    assert f"report: {out / 'report.html'}" in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["schema"] == 1
    assert summary["telemetry"] == "simulated"
    assert summary["priced_as"] == "qwen3-30b-a3b"
    assert summary["model"] == str(tiny_model)
    figures = summary["workloads"]["teacher_forced:words"]["strategies"]["opportunistic"]
    assert figures["energy_j_per_token"]["kind"] == "simulated"
    assert {p.name for p in (out / "traces").iterdir()} == {
        f"teacher_forced-words-{s}-0.json" for s in ("baseline", "opportunistic")
    }
    assert (out / "steps.csv").read_text().startswith("workload,seed,strategy,batch_index,step")
    env = json.loads((out / "env.json").read_text())
    assert env["seeds"] == [0]
    assert env["versions"]["torch"]
    assert cli.main(["run", *options, "--out", str(out)]) == 2
    assert f"--resume {out}" in capsys.readouterr().err


def test_the_table_says_whether_limits_were_held(tmp_path, tiny_model, tiny_text, capsys):
    options = [*text_options(tiny_model, tiny_text), "--strategies", "kernel_aware_ttha", "--calibration-tokens", "300"]
    options += ["--calibration-text", str(tiny_text), "--no-report"]
    for watts, said, held in (("2000", " of 2000 W", True), ("200", "> 200 W", False)):
        out = tmp_path / watts
        assert cli.main(["run", *options, "--power-budget-w", watts, "--out", str(out)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any("limits" in line for line in lines)
        assert said in " ".join(line for line in lines if "kernel_aware_ttha" in line)
        summary = json.loads((out / "summary.json").read_text())
        found = summary["workloads"]["teacher_forced:words"]["strategies"]
        assert found["kernel_aware_ttha"]["limits_held"] is held
        assert found["kernel_aware_ttha"]["limits"]["power_w"]["kind"] == "simulated"
        assert found["baseline"]["limits_held"] is None
    assert cli.main(["run", *text_options(tiny_model, tiny_text), "--no-report", "--out", str(tmp_path / "free")]) == 0
    assert "limits" not in capsys.readouterr().out


def test_calibrate_writes_a_file_that_a_run_takes(tmp_path, tiny_model, tiny_text, capsys):
    file = tmp_path / "made" / "calibration.json"
    options = ["--model", str(tiny_model), "--text", str(tiny_text), "--tokens", "400", "--batch-size", "4"]
    assert cli.main(["calibrate", *options, "--block-size", "50", "--out", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    out = tmp_path / "run"
    options = [*text_options(tiny_model, tiny_text), "--strategies", "kernel_aware", "--calibration", str(file)]
    options += ["--max-quality-loss-pct", "50", "--no-report", "--out", str(out)]
    assert cli.main(["run", *options]) == 0
    assert json.loads((out / "calibration.json").read_text()) == json.loads(file.read_text())
    assert "calibrating" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{}", "not json", '{"sensitivity": [[1.0]]}'])
def test_a_file_that_is_no_calibration_is_one_line(tmp_path, tiny_model, tiny_text, capsys, content):
    file = tmp_path / "c.json"
    file.write_text(content)
    options = [*text_options(tiny_model, tiny_text), "--strategies", "kernel_aware", "--calibration", str(file)]
    assert cli.main(["run", *options, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "thermoe calibrate" in err
    assert str(file) in err
    assert not (tmp_path / "run").exists()


def test_a_calibration_of_another_model_is_refused(tmp_path, tiny_model, tiny_text, capsys):
    from tiny_moe import save_tiny_model

    file = tmp_path / "c.json"
    assert cli.main(["calibrate", "--model", str(tiny_model), "--text", str(tiny_text), "--tokens", "400",
                     "--batch-size", "4", "--block-size", "50", "--out", str(file)]) == 0  # fmt: skip
    values = json.loads(file.read_text())
    values["sensitivity"] = [row[:-1] for row in values["sensitivity"]]
    file.write_text(json.dumps(values))
    other = save_tiny_model(tmp_path / "other")
    options = ["--model", str(other), "--text", str(tiny_text), *SMALL, "--strategies", "kernel_aware"]
    assert cli.main(["run", *options, "--calibration", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "(2, 7)" in capsys.readouterr().err


def test_a_model_without_experts_is_one_line(tmp_path, tiny_model, tiny_text, capsys):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "dense"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    assert (
        cli.main(["run", "--model", str(folder), "--text", str(tiny_text), *SMALL, "--out", str(tmp_path / "r")]) == 2
    )
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no experts" in err
    assert "qwen3_moe" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "nonsense"}'])
def test_a_broken_model_folder_is_one_line(tmp_path, tiny_text, capsys, content):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    assert cli.main(["run", "--model", str(folder), "--text", str(tiny_text), "--out", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(folder) in err


def test_a_text_too_short_for_the_batch_is_one_line(tmp_path, tiny_model, tiny_text, capsys):
    options = ["--model", str(tiny_model), "--text", str(tiny_text), "--batch-size", "400"]
    assert cli.main(["run", *options, "--out", str(tmp_path / "r")]) == 2
    assert "smaller batch size" in capsys.readouterr().err


def test_a_budget_that_cannot_be_met_is_one_line_before_anything_is_written(tmp_path, tiny_model, tiny_text, capsys):
    options = [*text_options(tiny_model, tiny_text), "--strategies", "kernel_aware_ttha", "--calibration-tokens", "300"]
    options += ["--calibration-text", str(tiny_text), "--set", "ttha.target_energy_j_per_token=0.001"]
    assert cli.main(["run", *options, "--out", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "0.001 J/token" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (["--power-budget-w", "100"], "100 W was asked for; the digital twin draws 117 W without any work"),
        (["--set", "ttha.target_power_w=90", "--power-budget-w", "450"], "90 W"),
        (["--temp-budget-c", "30"], "30 deg C was asked for; the digital twin is at 33.9"),
    ],
)
def test_a_limit_that_an_idle_board_exceeds_is_one_line_before_anything_is_calibrated(
    tmp_path, tiny_model, tiny_text, capsys, limit, said
):
    options = [*text_options(tiny_model, tiny_text), "--strategies", "kernel_aware_ttha", *limit]
    assert cli.main(["run", *options, "--out", str(tmp_path / "r")]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert said in told.err
    assert "calibrating" not in told.out
    assert not (tmp_path / "r").exists()


WRONG_SETTINGS = {
    "weights of another shape": {"moe_intermediate_size": 24},
    "quantised": {"quantization_config": {"quant_method": "fp8"}},
}


def damaged(tiny_model, folder, damage):
    """A copy of the tiny model with one thing wrong."""
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "weights that are none":
        weights.write_text("not a model")
    elif damage in WRONG_SETTINGS:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | WRONG_SETTINGS[damage]))
    else:
        for file in folder.glob("tokenizer*"):
            file.unlink()
    return folder


@pytest.mark.parametrize(
    "damage", ["cut weights", "no weights", "weights that are none", "no tokenizer", *WRONG_SETTINGS]
)
def test_a_damaged_model_is_one_line_before_anything_is_written(tmp_path, tiny_model, tiny_text, capfd, damage):
    folder = damaged(tiny_model, tmp_path / "model", damage)
    assert cli.main(["run", "--model", str(folder), "--text", str(tiny_text), "--out", str(tmp_path / "r")]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert str(folder) in err
    assert ("stored quantised (fp8)" in err) == (damage == "quantised")
    assert not (tmp_path / "r").exists()


def test_an_unsupported_family_names_the_supported_ones(tmp_path, tiny_model, tiny_text, capsys):
    from transformers import AutoTokenizer, JambaConfig, JambaForCausalLM

    folder = tmp_path / "jamba"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    layers = {"attn_layer_offset": 0, "attn_layer_period": 1, "expert_layer_offset": 0, "expert_layer_period": 1}
    config = JambaConfig(vocab_size=256, **sizes, **layers, num_key_value_heads=2, num_experts=4)
    config.use_mamba_kernels = False
    JambaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    options = ["--model", str(folder), "--text", str(tiny_text), *SMALL, "--out", str(tmp_path / "r")]
    capsys.readouterr()
    assert cli.main(["run", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "jamba" in err
    assert "mixtral" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00no text"])
def test_a_text_that_cannot_be_read_is_one_line(tmp_path, tiny_model, capsys, content):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    for option in (["run", "--text", str(file)], ["calibrate", "--text", str(file)]):
        assert cli.main([*option, "--model", str(tiny_model), "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert str(file) in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"time_s,power_w\n", b"time_s,power_w\n0,abc\n", b"a,b\n1,2\n", b"\xff\xfe"])
def test_a_broken_log_is_one_line_before_anything_is_written(tmp_path, tiny_model, tiny_text, capsys, content):
    log = tmp_path / "log.csv"
    log.write_bytes(content)
    options = [*text_options(tiny_model, tiny_text), "--telemetry", f"replay:{log}", "--out", str(tmp_path / "r")]
    assert cli.main(["run", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(log) in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("content", ["", "{}", "[1, 2", '{"format": "thermoe.costs"}'])
@pytest.mark.parametrize(
    "command", [["costs", "show"], ["costs", "diff"], ["costs", "merge"], ["costs", "eval"], ["fit"], ["run"]]
)
def test_a_corrupt_cost_file_is_one_line(tmp_path, tiny_model, tiny_text, capsys, command, content):
    file = tmp_path / "bad.costs.json"
    file.write_text(content)
    words = {
        "diff": [file, file],
        "merge": [file, file, "--out", tmp_path / "m"],
        "eval": [file, file, "--json"],
        "fit": [file, "--out", tmp_path / "m"],
        "run": [*text_options(tiny_model, tiny_text), "--cost-model", file, "--out", tmp_path / "m"],
    }.get(command[-1], [file])
    assert cli.main([*command, *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(file) in err
    assert not (tmp_path / "m").exists()


def test_a_calibration_cannot_replace_a_folder(tmp_path, tiny_model, tiny_text, capsys):
    options = ["--model", str(tiny_model), "--text", str(tiny_text), "--out", str(tmp_path)]
    assert cli.main(["calibrate", *options]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_fails_and_one_without_its_extra_does_not(
    tmp_path, tiny_model, tiny_text, capsys, monkeypatch
):
    options = [*text_options(tiny_model, tiny_text), "--strategies", "baseline"]

    def failing(cause):
        def write_report(run_dirs, out):
            raise ThermoeError("no report today") from cause

        return write_report

    monkeypatch.setattr(conclude, "write_report", failing(OSError(28, "No space left on device")))
    assert cli.main(["run", *options, "--out", str(tmp_path / "full")]) == 2
    assert capsys.readouterr().err == "thermoe: error: no report today\n"
    monkeypatch.setattr(conclude, "write_report", failing(None))
    assert cli.main(["run", *options, "--out", str(tmp_path / "bare")]) == 0
    assert "no report: no report today" in capsys.readouterr().out
    assert (tmp_path / "bare" / "summary.json").is_file()


def test_a_sensor_of_the_twin_that_fails_mid_run_is_told_once_and_the_run_goes_on(
    tmp_path, tiny_model, tiny_text, caplog
):
    out = tmp_path / "run"
    options = ["--model", str(tiny_model), "--text", str(tiny_text), "--strategies", "baseline,top_p", "--no-report"]
    options += ["--batch-size", "2", "--block-size", "100", "--passes", "2", "--scenario", "failing_sensor"]
    assert cli.main(["run", *options, "--out", str(out)]) == 0
    readings = pd.read_parquet(out / "telemetry.parquet")
    share = readings.isna().mean()
    failed = sorted(share[(share > 0) & (share < 1)].index)
    assert failed
    assert len(caplog.records) == len(failed)
    assert all(f"sensor {name} fell silent" in caplog.text for name in failed)
    batches = pd.read_parquet(out / "batches.parquet")
    assert len(batches) == 2 * 2 * 3
    assert batches["nll_sum"].notna().all()
