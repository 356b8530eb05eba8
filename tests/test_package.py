"""The package as a whole: a light import, small files, ranges that agree with each other."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import thermoe
from thermoe.doctor import EXTRAS, SUPPORTED

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 450
LIGHT = ["thermoe", "thermoe.types", "thermoe.telemetry", "thermoe.cost", "thermoe.analysis", "thermoe.cli"]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", LIGHT)
def test_import_loads_nothing_heavy_and_starts_no_thread(module):
    heavy = ["torch", "triton", "transformers", "pynvml", "matplotlib", "tyro"]
    out = run_python(
        f"import {module}, sys, threading\n"
        f"print(sorted(set({heavy}) & set(sys.modules)), threading.active_count(), 'cuda' in sys.modules)"
    )
    assert out == "[] 1 False"


def test_attach_is_offered_without_being_imported():
    out = run_python("import thermoe, sys; print('attach' in dir(thermoe), 'torch' in sys.modules)")
    assert out == "True False"


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="attach"):
        thermoe.atach  # noqa: B018


def test_installed_version_is_the_source_version():
    assert version("thermoe") == thermoe.__version__


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_source_file_is_too_long(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines, at most {MAX_LINES}: split it by idea"


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_doctor_and_dependencies_start_their_range_at_the_same_release(name):
    (spec,) = [s for s in project()["dependencies"] if re.match(rf"{name}\b", s)]
    lowest = re.search(r">=(\d+)\.(\d+)", spec)
    assert lowest is not None
    assert tuple(map(int, lowest.groups())) == SUPPORTED[name][0]


def test_transformers_range_ends_where_the_doctor_says():
    (spec,) = [s for s in project()["dependencies"] if s.startswith("transformers")]
    major, minor = SUPPORTED["transformers"][1]
    assert spec.endswith(f"<{major}.{minor + 1}")


def pins(file_name: str) -> dict[str, str]:
    lines = (ROOT / file_name).read_text(encoding="utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def test_constraints_pin_every_direct_dependency():
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"], *(spec for specs in extras.values() for spec in specs)]
    names = {re.split(r"[<>=; \[]", spec)[0].lower() for spec in wanted}
    assert names - set(pins("constraints.txt")) == set()


def test_both_ends_of_the_transformers_range_are_pinned():
    first, last = SUPPORTED["transformers"]
    ends = [pins(f)["transformers"] for f in ("constraints-oldest.txt", "constraints.txt")]
    assert [tuple(map(int, end.split(".")[:2])) for end in ends] == [first, last]


def test_doctor_knows_the_extras_that_people_install():
    development = {"test", "check", "docs"}
    assert set(EXTRAS) == set(project()["optional-dependencies"]) - development
