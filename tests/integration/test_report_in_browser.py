"""A report in a browser without a network: at desktop and phone width, in print, without scripts.

Where axe-core is installed (``pip install axe-core-python``) it looks for what keeps people out.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from reported import HOSTILE, save_bowl, save_named, small_map, spectrum

import hessian_spectrum as hs
from hessian_spectrum.reporting import page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; apt-get install chromium")
AXE = importlib.util.find_spec("axe_core_python")
SIZES = {"desktop": (1100, 800), "phone": (360, 740)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Of a run without a surface."""
    folder = tmp_path_factory.mktemp("plain")
    hs.save(folder / "run.h5", *spectrum(), config={"model": "m", "limit": 5}, values={"loss": 1.0})
    page.write([folder / "run.h5"], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def turning(tmp_path_factory):
    """Of two runs: a surface with a way of training, and a map."""
    pytest.importorskip("plotly")
    folder = tmp_path_factory.mktemp("turning")
    save_bowl(folder / "bowl.h5")
    hs.save(folder / "map.h5", small_map())
    page.write([folder], folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_its_window(browser, plain, size):
    browser.open(plain, *SIZES[size])
    assert browser.errors == []
    assert browser.urls == [plain.as_uri()]
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
    assert browser.ask(
        "document.querySelector('svg[role=img]').getBoundingClientRect().width > 300"
    )


def test_the_page_is_whole_without_scripts(browser, plain):
    browser.open(plain, scripts=False)
    text = browser.ask("document.body.innerText")  # asked by the debugger, not by the page
    for said in ("What was found", "Negative curvature", "How to compute it again"):
        assert said in text
    seen = browser.ask("[...document.querySelectorAll('svg')].every(s => s.clientHeight > 100)")
    assert seen
    assert not browser.ask("document.querySelector('thead button')")


def test_tables_sort_by_their_numbers_both_ways(browser, plain):
    browser.open(plain)
    tables = "[...document.querySelectorAll('table')]"
    rows = f"{tables}.find(t => /largest first/.test(t.caption.textContent))"
    cells = f"[...{rows}.tBodies[0].rows].map(r => Number(r.cells[1].dataset.value))"
    before = browser.ask(cells)
    assert before == sorted(before, reverse=True)
    for expected in (sorted(before), before):
        browser.ask(f"{rows}.tHead.rows[0].cells[1].querySelector('button').click()")
        assert browser.ask(cells) == expected
    assert browser.ask(f"{rows}.tHead.rows[0].cells[1].ariaSort") == "descending"


def test_surfaces_turn_and_maps_tell_their_values(browser, turning):
    browser.open(turning, 1100, 1600)
    box, middle = (
        "document.querySelector('.turn')",
        "(r => [r.x + r.width / 2, r.y + r.height / 2])",
    )
    browser.ask(f"{box}.scrollIntoView()")
    browser.wait_for(f"{box}.querySelector('canvas')")
    eye = f"JSON.stringify({box}._fullLayout.scene.camera.eye)"
    before = browser.ask(eye)
    x, y = browser.ask(f"{middle}({box}.querySelector('canvas').getBoundingClientRect())")
    browser.drag((x, y), (x + 120, y + 10))
    browser.wait_for(f"{eye} !== {json.dumps(before)}")
    heat = "document.querySelectorAll('.turn')[1]"
    browser.ask(f"{heat}.scrollIntoView()")
    browser.wait_for(f"{heat}.querySelector('.nsewdrag')")
    x, y = browser.ask(f"{middle}({heat}.querySelector('.nsewdrag').getBoundingClientRect())")
    browser.mouse("mouseMoved", x - 5, y - 5)
    browser.mouse("mouseMoved", x, y)
    browser.wait_for(f"/smallest/.test({heat}.querySelector('.hoverlayer').textContent)")
    assert browser.errors == []
    assert browser.urls == [turning.as_uri()]


def test_it_prints(browser, plain, turning):
    for file in (plain, turning):
        browser.open(file)
        content = browser.printed()
        assert content.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 2


def test_names_in_a_file_stay_names(browser, tmp_path):
    save_named(tmp_path / "run.h5", HOSTILE)
    page.write([tmp_path / "run.h5"], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.ask("typeof hacked") == "undefined"
    assert browser.ask("document.querySelectorAll('img').length") == 0
    assert browser.errors == []


@pytest.mark.skipif(AXE is None, reason="no axe-core; pip install axe-core-python")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["plain", "turning"])
def test_an_accessibility_checker_finds_nothing_serious(browser, request, name, scheme):
    browser.open(request.getfixturevalue(name), scheme=scheme)
    browser.ask("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    browser.ask((Path(AXE.origin).parent / "axe.min.js").read_text() + ";0")
    found = browser.ask(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations"
        ".filter(v => ['serious', 'critical', 'moderate'].includes(v.impact))"
        ".map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 200)]))"
    )
    assert found == []
