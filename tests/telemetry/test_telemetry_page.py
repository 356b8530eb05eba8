"""The page on telemetry runs as it stands, top to bottom."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "telemetry.md"


def test_the_snippets_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(snippets) == 5
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("117.0 33.9")
    assert printed[0].endswith("None simulated")
    assert printed[-1] == "[200.0]"
