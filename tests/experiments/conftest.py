import pytest
from rich.console import Console
from tiny_moe import save_tiny_model, write_text


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words.txt", 600)


@pytest.fixture
def quiet():
    return Console(quiet=True)
