from dataclasses import replace

import pytest
from cost_rows import KEY, make_row

from thermoe.cost.command import CostsEval, Fit
from thermoe.cost.database import CostDatabase
from thermoe.errors import ConfigError


def test_a_model_judged_on_another_gpu_says_so(tmp_path, capsys):
    here, there, model = (tmp_path / name for name in ("a.costs.json", "b.costs.json", "m.json"))
    CostDatabase([make_row(100.0)]).save(here)
    CostDatabase([make_row(100.0, device=replace(KEY, gpu="Other GPU"))]).save(there)
    Fit(tables=(here,), out=model).execute()
    capsys.readouterr()
    assert CostsEval(model=model, table=here).execute() == 0
    assert not capsys.readouterr().err
    assert CostsEval(model=model, table=there).execute() == 0
    assert "was fitted on Test GPU" in capsys.readouterr().err


def test_a_fit_does_not_write_over_its_database(tmp_path):
    costs = tmp_path / "a.costs.json"
    CostDatabase([make_row(100.0)]).save(costs)
    with pytest.raises(ConfigError, match="would be lost"):
        Fit(tables=(costs,), out=costs).execute()
    assert len(CostDatabase.load(costs)) == 1
