"""Fixtures of all tests, the environment of what they start, and markers by folder."""

import os
from pathlib import Path

# Before torch starts, and for the processes that tests start: test workers and ranks side by side
# would otherwise each use every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from locations import DATA
from precision_switches import FLOAT32

# The assertions of these helpers explain themselves like those of a test.
pytest.register_assert_rewrite("command_line", "density_runs", "launching")
FOLDERS = Path(__file__).parent
LONGEST = "test_studies.py"


def pytest_collection_modifyitems(items):
    """Mark tests by their folder: ``quick`` (unit and not slow), ``integration``, ``system``.

    The longest one begins first, so that no worker waits for another's at the end.
    """
    items.sort(key=lambda item: item.path.name != LONGEST)
    for item in items:
        if not item.path.is_relative_to(FOLDERS):
            continue
        folder = item.path.relative_to(FOLDERS).parts[0]
        if folder in ("integration", "system"):
            item.add_marker(folder)
        elif folder == "unit" and item.get_closest_marker("slow") is None:
            item.add_marker("quick")


@pytest.fixture(autouse=True)
def _seed(monkeypatch, tmp_path_factory):
    torch.manual_seed(0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _torch_is_found_as_it_was():
    """Whatever a test computes, torch's switches are not left turned."""
    before = [kernel.fp32_precision for kernel in FLOAT32]
    yield
    assert [kernel.fp32_precision for kernel in FLOAT32] == before


@pytest.fixture
def data_root() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA}; set HESSIAN_SPECTRUM_DATA")
    return DATA


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
