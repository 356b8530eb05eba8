"""The snippets of the pages on routing, adaptation and runtime run, and print what they say."""

import re
from pathlib import Path

import pytest

from thermoe.routing.settings import SETTINGS

CONCEPTS = Path(__file__).resolve().parents[2] / "docs" / "concepts"


@pytest.mark.parametrize(("name", "count"), [("routing", 1), ("adaptation", 2), ("runtime", 1)])
def test_snippets_print_what_their_comments_say(name, count, capsys):
    snippets = re.findall(r"```python\n(.*?)```", (CONCEPTS / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == count
    for snippet in snippets:
        exec(compile(snippet, name, "exec"), {})
        said = re.findall(r"print\(.*\)  # (.*)", snippet)
        assert said
        assert capsys.readouterr().out.splitlines() == said


def test_the_table_of_strategies_has_every_setting_with_its_default():
    page = (CONCEPTS / "routing.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \|(.*)\|$", page, re.MULTILINE))
    assert set(rows) == {str(s) for s in SETTINGS}
    for strategy, settings in SETTINGS.items():
        for key, value in settings.items():
            if strategy == "kernel_aware_ttha" and key in SETTINGS["kernel_aware"]:
                continue
            assert f"`{key}`" in rows[strategy]
            if value is not None:
                assert f"`{key}` ({value:g})" in rows[strategy]
