"""What people type becomes one checked configuration, or one line and exit code 2."""

import tomllib

import pytest
import tyro

from thermoe import cli
from thermoe.commands.run import Run
from thermoe.errors import ConfigError
from thermoe.experiments.config import RunConfig

FLAGS = {
    "--model": ("models/tiny", "model", "models/tiny"),
    "--strategies": ("baseline,kernel_aware_ttha", "strategies", ("baseline", "kernel_aware_ttha")),
    "--workloads": ("prefill,generation", "workloads", ("prefill", "generation")),
    "--seeds": ("0,1,2", "seeds", (0, 1, 2)),
    "--batch-size": ("7", "batch_size", 7),
    "--block-size": ("33", "block_size", 33),
    "--max-tokens": ("5000", "max_tokens", 5000),
    "--new-tokens": ("3", "new_tokens", 3),
    "--samples-per-workload": ("5", "samples_per_workload", 5),
    "--passes": ("2", "passes", 2),
    "--control-steps": ("4", "control_steps", 4),
    "--arrival-rate": ("120.5", "arrival_rate", 120.5),
    "--device": ("cuda", "device", "cuda"),
    "--dtype": ("float32", "dtype", "float32"),
    "--telemetry": ("replay:log.csv", "telemetry", "replay:log.csv"),
    "--window-s": ("3", "window_s", 3.0),
    "--scenario": ("hot_ambient", "scenario", "hot_ambient"),
    "--priced-as": ("model", "priced_as", "model"),
    "--cost-model": ("m.json", "cost_model", "m.json"),
    "--calibration": ("c.json", "calibration", "c.json"),
    "--calibration-tokens": ("99", "calibration_tokens", 99),
    "--experts": ("bank4", "experts", "bank4"),
    "--expert-type": ("simple", "expert_type", "simple"),
    "--d-model": ("64", "d_model", 64),
    "--inter-size": ("96", "inter_size", 96),
    "--num-experts": ("12", "num_experts", 12),
    "--top-k": ("3", "top_k", 3),
    "--num-layers": ("5", "num_layers", 5),
    "--power-budget-w": ("450", "power_budget_w", 450.0),
    "--energy-budget-j-per-token": ("0.4", "energy_budget_j_per_token", 0.4),
    "--temp-budget-c": ("50", "temp_budget_c", 50.0),
    "--latency-budget-ms": ("15", "latency_budget_ms", 15.0),
    "--max-quality-loss-pct": ("1", "max_quality_loss_pct", 1.0),
    "--name": ("night", "name", "night"),
}


def typed(*arguments):
    return tyro.cli(Run, args=list(arguments)).run_config()


def test_every_option_reaches_the_configuration_and_survives_toml():
    arguments = [part for flag, (text, *_) in FLAGS.items() for part in (flag, text)]
    arguments += [
        "--text",
        "a.txt",
        "b.txt",
        "--calibration-text",
        "c.txt",
        "d.txt",
        "--csv",
        "--trace",
        "--join-texts",
    ]
    arguments += ["--set", "opportunistic.k0=4", "--set", "ttha.target_power_w=450"]
    config = typed(*arguments)
    assert {name: getattr(config, name) for _, name, _ in FLAGS.values()} == {n: v for _, n, v in FLAGS.values()}
    assert (config.text, config.calibration_text) == (("a.txt", "b.txt"), ("c.txt", "d.txt"))
    assert config.csv
    assert config.trace
    assert config.join_texts
    assert config.settings_of("opportunistic") == {"k0": 4.0}
    assert config.settings_of("kernel_aware_ttha") == {"target_power_w": 450.0}
    assert RunConfig.from_mapping(tomllib.loads(config.to_toml())) == config


def test_no_parameter_of_a_run_is_out_of_reach_of_the_command_line():
    from dataclasses import fields

    reachable = {name for _, name, _ in FLAGS.values()} | {
        "text",
        "calibration_text",
        "csv",
        "trace",
        "join_texts",
        "settings",
    }
    assert {f.name for f in fields(RunConfig)} == reachable


def test_options_override_the_file_key_by_key(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'model = "m"\ntext = "one.txt"\nbatch_size = 8\nstrategies = ["baseline", "opportunistic"]\n'
        "[opportunistic]\nk0 = 3\n[ttha]\ntarget_power_w = 500\n"
    )
    config = typed(str(file), "--batch-size", "4", "--set", "kernel_aware_ttha.target_power_w=450")
    assert (config.batch_size, config.text) == (4, ("one.txt",))
    assert config.settings_of("opportunistic") == {"k0": 3}
    assert config.settings_of("kernel_aware_ttha") == {"target_power_w": 450.0}


def test_what_is_not_asked_for_is_written_out_as_its_default():
    written = tomllib.loads(RunConfig(model="m", text=("t",)).to_toml())
    assert (written["block_size"], written["workloads"]) == (512, ["teacher_forced"])
    assert "power_budget_w" not in written


def test_budgets_reach_the_control_plane_in_si_units():
    config = typed("--strategies", "kernel_aware_ttha", "--latency-budget-ms", "12.5", "--power-budget-w", "450")
    assert config.budget().latency_s == pytest.approx(0.0125)
    assert config.budget().power_w == 450.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategies", "baseline,nonsense"], ["nonsense", "opportunistic", "top_p"]),
        (["--strategies", "baseline,,top_p"], ["comma list"]),
        (["--strategies", "baseline,baseline"], ["twice"]),
        (["--seeds", "0,x"], ["comma list of int"]),
        (["--seeds", "-1"], ["seed -1", "at least 0"]),
        (["--seeds", "0,9223372036854775808"], ["seed 9223372036854775808", "2**63"]),
        (["--workloads", "prefill"], ["prefill", "high_complexity"]),
        (["--set", "opportunistic.k0"], ["NAME.KEY=VALUE"]),
        (["--set", "opportunistic.k9=1"], ["opportunistic.k9", "k0"]),
        (["--set", "nonsense.k0=1"], ["nonsense", "opportunistic"]),
        (["--set", "opportunistic.k0=many"], ["many", "not a number"]),
        (["--device", "tpu"], ["tpu", "cpu, cuda"]),
        (["--telemetry", "guess"], ["guess", "replay:FILE"]),
        (["--telemetry", "nvml:"], ["nvml:", "nvml:INDEX"]),
        (["--telemetry", "nvml:x"], ["nvml:x", "nvml:INDEX"]),
        (["--telemetry", "nvml:1"], ["no GPU", "nvml:1"]),
        (["--arrival-rate", "1e-6"], ["arrival_rate = 1e-06", "tokens per second"]),
        (["--priced-as", "gpt"], ["gpt", "qwen3-30b-a3b", "model"]),
        (["--expert-type", "int4"], ["int4", "simple, quantized, mixed"]),
        (["--batch-size", "0"], ["batch_size = 0", "at least 1"]),
        (["--arrival-rate", "-1"], ["arrival_rate", "at least 0"]),
        (["--arrival-rate", "nan"], ["arrival_rate", "finite"]),
        (["--top-k", "16"], ["top_k = 16", "fewer"]),
        (["--power-budget-w", "-5"], ["power_w = -5"]),
        (["--power-budget-w", "450"], ["power_budget_w", "kernel_aware_ttha"]),
        (["--strategies", "static_optimal"], ["static_optimal", "--model"]),
        (["--max-quality-loss-pct", "1"], ["max_quality_loss_pct", "--model"]),
        (["--calibration", "c.json"], ["calibration", "--model"]),
        (["--model", "m", "--text", "t", "--max-quality-loss-pct", "1", "--strategies", "top_p"], ["static_optimal"]),
        (["--text", "a.txt"], ["--model"]),
        (["--model", "m"], ["--text"]),
        (["--name", "a/b"], ["a/b"]),
        (["no_such.toml"], ["no_such.toml"]),
        (["--telemetry", "nvml"], ["no GPU"]),
        (["--device", "cuda"], ["no GPU"]),
        (["--scenario", "earthquake"], ["earthquake", "throttling"]),
        (["--telemetry", "replay:no_such.csv"], ["no_such.csv"]),
        (["--cost-model", "no_such.json"], ["no_such.json"]),
        (["--resume", "no_such_folder"], ["no_such_folder"]),
        (["--resume", "x", "--batch-size", "3"], ["--resume", "no other option"]),
        (["--model", "./no_such_model", "--text", __file__], ["no_such_model"]),
        (["--model", ".", "--text", "no_such.txt"], ["no_such.txt"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert [word for word in said if word not in err] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("telemetry", ["auto", "nvml", "nvml:0", "nvml:12", "simulated", "replay:log.csv"])
def test_every_documented_source_is_taken(telemetry):
    assert typed("--telemetry", telemetry).telemetry == telemetry


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("batchsize = 3", "batchsize"),
        ('batch_size = "three"', "batch_size"),
        ("batch_size = true", "batch_size"),
        ("seeds = [0.5]", "seeds"),
        ("seeds = []", "seeds"),
        ("text = [1]", "text"),
        ("[opportunistic]\nk0 = true", "opportunistic.k0"),
        ("[nonsense]\nk0 = 1", "nonsense"),
        ("[top_p]\nmass = 1.5", "top_p.mass"),
        ("batch_size = ", "TOML"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_code_2(content, said, capsys, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(content)
    assert cli.main(["run", str(file)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("content", ["", "   \n\n"])
def test_an_empty_text_is_refused_before_the_model_is_loaded(content, tmp_path, capsys):
    text = tmp_path / "empty.txt"
    text.write_text(content)
    assert cli.main(["run", "--model", "./nowhere", "--text", str(text)]) == 2
    assert "empty" in capsys.readouterr().err


def test_a_config_file_that_is_a_folder_or_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.from_toml(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.from_toml(tmp_path / "x.toml")
