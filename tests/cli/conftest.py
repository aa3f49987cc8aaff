"""Photos and a run of them, made once for all tests of a module."""

import pytest

from cli_cases import small_run
from tiny import write_photos


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("cli"), each=4)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return small_run(data, tmp_path_factory.mktemp("runs") / "a")
