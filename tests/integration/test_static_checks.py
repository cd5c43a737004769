"""What can be checked without running: style, format, the direction of imports, types."""

import shutil
import subprocess
import sys

import pytest
from locations import ROOT

CHECKS = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "imports": ["lint-imports"],
    "types": ["mypy"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_static_check(name):
    tool, *words = CHECKS[name]
    beside = shutil.which(tool, path=str(sys.prefix + "/bin")) or shutil.which(tool)
    if beside is None:
        pytest.skip(f"{tool} is not installed: pip install -e '.[test]'")
    done = subprocess.run([beside, *words], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
