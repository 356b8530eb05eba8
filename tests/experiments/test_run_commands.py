"""The commands as they are typed: what they print, write and refuse."""

import json

import pytest

from thermoe import cli

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
