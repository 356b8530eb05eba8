"""A calibration is only taken for a model of the family and shape that it was made on."""

import json

import pytest

from thermoe import cli
from thermoe.experiments.store import RunStore

SMALL = ["--max-tokens", "80", "--batch-size", "2", "--block-size", "16", "--strategies", "kernel_aware"]
CHANGES = {
    "family": (lambda values: values | {"model_type": "mixtral"}, "mixtral"),
    "shape": (lambda values: values | {"sensitivity": [row[:-1] for row in values["sensitivity"]]}, "(2, 7)"),
}


@pytest.fixture(scope="module")
def options(tiny_model, tiny_text):
    return ["--model", str(tiny_model), "--text", str(tiny_text)]


@pytest.fixture(scope="module")
def values(options, tmp_path_factory):
    file = tmp_path_factory.mktemp("calibration") / "c.json"
    sizes = ["--tokens", "400", "--batch-size", "4", "--block-size", "50"]
    assert cli.main(["calibrate", *options, *sizes, "--out", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.mark.parametrize("change", CHANGES)
def test_a_new_run_refuses_a_calibration_of_another_model(tmp_path, options, values, capsys, change):
    changed, said = CHANGES[change]
    file = tmp_path / "c.json"
    file.write_text(json.dumps(changed(values)))
    out = tmp_path / "run"
    assert cli.main(["run", *options, *SMALL, "--calibration", str(file), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert str(file) in err
    assert not out.exists()


@pytest.mark.parametrize("change", CHANGES)
def test_a_resumed_run_refuses_one_that_came_into_its_folder(tmp_path, options, values, capsys, monkeypatch, change):
    changed, said = CHANGES[change]
    file, out = tmp_path / "c.json", tmp_path / "run"
    file.write_text(json.dumps(values))

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "append", stopped)
        cli.main(["run", *options, *SMALL, "--calibration", str(file), "--out", str(out)])
    (out / "calibration.json").write_text(json.dumps(changed(values)))
    capsys.readouterr()
    assert cli.main(["run", "--resume", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert str(out / "calibration.json") in err
