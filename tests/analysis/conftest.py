import pytest
from synthetic_run import write_run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "demo")
