"""The page of a surface, in a browser without a network."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from surfaces_by_hand import bowl

from hessian_spectrum.plotting import surface_export

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


OPTIONS = [
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-unsafe-swiftshader",
        "--hide-scrollbars",
    ),
    *("--use-angle=swiftshader", "--disable-dev-shm-usage", "--window-size=900,700"),
    *(
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        "--virtual-time-budget=8000",
    ),
]


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess:
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, *OPTIONS, profile, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
def test_the_page_shows_the_surface_in_a_browser_without_a_network(tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "surface.html"
    surface_export.save_page(bowl(broken=True), page, log=True, title="a < b")
    done = chromium(page, "--dump-dom", f"--screenshot={tmp_path / 'page.png'}")
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    errors = [line for line in console if re.search("error|not supported|refused", line, re.I)]
    assert not errors
    assert "gl-container" in done.stdout
    assert "<canvas" in done.stdout
    assert "a &lt; b" in done.stdout
    from matplotlib.image import imread

    pixels = imread(tmp_path / "page.png")[..., :3].reshape(-1, 3)
    viridis = np.abs(pixels - [0.13, 0.57, 0.55]).max(1) < 0.12  # its middle: teal
    assert viridis.sum() > 500
