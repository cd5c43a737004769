"""The documents keep their promises: links lead somewhere, the example prints what it says it does,
and the functions and commands that README.md names exist."""

import contextlib
import io
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from locations import ROOT

import hessian_spectrum as hs

SKIPPED = {"build", "dist", "shared"}  # folders beside the sources that are not ours
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.md")
    if not any(part in SKIPPED or part[0] == "." for part in path.relative_to(ROOT).parts[:-1])
)
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a document, in links."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS, ids=str)
def test_relative_links_lead_somewhere(name):
    document = ROOT / name
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_picture_of_a_document_stands_beside_its_measurement():
    shown = set(LINK.findall(prose(ROOT / "benchmarks" / "README.md")))
    pictures = {f"pictures/{path.name}" for path in (ROOT / "benchmarks" / "pictures").iterdir()}
    assert pictures <= shown


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_the_readme_keeps_the_commands_that_ci_runs():
    for word in ("run", "test"):
        assert re.search(rf"<!-- {word} -->\n```bash\n.*?^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_example_prints_what_the_readme_says():
    blocks = FENCE.findall(README)
    (code,) = [text for language, text in blocks if language == "python"]
    (expected,) = [text for language, text in blocks if language == "text"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), {})
    found = printed.getvalue()
    assert NUMBER.sub("#", found) == NUMBER.sub("#", expected)
    for ours, theirs in zip(NUMBER.findall(found), NUMBER.findall(expected), strict=True):
        # Two significant digits: training rounds differently on each processor.
        assert math.isclose(float(ours), float(theirs), rel_tol=0.05), (found, expected)


@pytest.fixture(scope="module")
def table():
    """Rows of the table of questions: question, functions, command."""
    section = README.split("## Which question")[1].split("\n## ")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    return rows[1:]


def test_the_functions_of_the_table_exist(table):
    names = re.findall(r"`hs\.(\w+)", "\n".join(row[1] for row in table))
    assert len(names) > 20
    assert [name for name in names if not hasattr(hs, name)] == []


def test_the_queries_of_the_table_exist(table):
    names = re.findall(r"`(?:measure)?\.(\w+)`", "\n".join(row[1] for row in table))
    assert "count" in names
    assert [name for name in names if not hasattr(hs.SpectralMeasure, name)] == []


def test_the_commands_of_the_table_exist(table):
    words = [sys.executable, "-m", "hessian_spectrum", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"• (\w+) ", done.stdout))
    named = {
        text.split()[0] for row in table for text in re.findall(r"`([^`]+)`", "".join(row[2:]))
    }
    assert {"density", "query", "plot"} <= named <= known


def test_the_citation_and_the_package_name_the_same_version():
    assert f"version: {hs.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_module_is_described_and_no_other():
    text = prose(ROOT / "hessian_spectrum" / "README.md").split("## Packages")[1]
    text = text.split("\n## ")[0]
    for package in (path.parent for path in (ROOT / "hessian_spectrum").glob("*/__init__.py")):
        start = text.index(f"**`{package.name}/`**")
        section = text[start:].split("\n**`", 1)[0]
        modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
        assert modules - set(re.findall(r"`(\w+)`", section)) == set(), package.name
        first = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", "".join(first))) - modules == set(), package.name
