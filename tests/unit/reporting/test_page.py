"""A report: what it says, that it is one file, and that names in result files stay names."""

import re
import shlex

import numpy as np
import pytest
from command_line import fails
from reported import HOSTILE, LABEL, Page, named, save_bowl, save_named, small_map, spectrum, way

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.reporting import page, parts
from hessian_spectrum.reporting.html import PAGE_TAGS, SVG_TAGS
from hessian_spectrum.reporting.source import Source
from hessian_spectrum.spectral.eigenpairs import EigenPairs


@pytest.fixture(scope="module")
def spectra():
    return spectrum()


@pytest.fixture(scope="module")
def spectral_page(spectra, tmp_path_factory):
    """Of one run with a density, eigenpairs and values."""
    folder = tmp_path_factory.mktemp("report")
    command = ["hessian-spectrum", "density", "--model", "a model", "--out", "run.h5"]
    config = {"model": "a model", "dataset": "digits", "limit": 300, "operator": "hessian"}
    hs.save(
        folder / "run.h5",
        *spectra,
        config=config,
        plan={"batch_norm": "train", "parameters": 40},
        provenance={"command": command, "host": "here", "seconds": 3.0},
        values={"loss": 0.25},
    )
    page.write([folder / "run.h5"], folder / "report.html")
    return folder / "report.html"


def written(tmp_path, *results, name="run.h5", finished=True, **labelled):
    hs.save(tmp_path / name, *results, finished=finished, **labelled)
    page.write([tmp_path / name], tmp_path / "page.html")
    return Page((tmp_path / "page.html").read_text())


# -- what it says --------------------------------------------------------------------------------


def test_it_begins_with_what_was_found_and_what_to_beware_of(spectral_page):
    text = Page(spectral_page.read_text()).text
    order = ["What was found", "What to beware of", "Results", "How to compute it again"]
    assert sorted(order, key=text.rindex) == order
    for said in (
        "The largest of 40 eigenvalues is 9 ",
        "Negative curvature",
        "Only the first 300 samples",
        "the statistics of each minibatch (batch_norm = train)",
        "a model on digits",
        "hessian-spectrum density --model 'a model' --out run.h5",
    ):
        assert said in text


def test_it_is_small_and_asks_for_nothing_from_outside(spectral_page):
    text = spectral_page.read_text()
    assert spectral_page.stat().st_size < 300_000
    found = Page(text)
    (policy,) = [a["content"] for a in found.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    assert "script-src 'sha256-" in policy
    for _, attributes in found.elements:
        assert not attributes.keys() & {"src", "action", "srcset"}
        assert attributes.get("href", "#").startswith("#")


def test_every_figure_has_a_sentence_and_its_numbers_in_a_table(spectral_page):
    found = Page(spectral_page.read_text())
    figures = found.all("svg")
    assert len(figures) == 5
    texts = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    for svg in figures:
        assert set(svg["aria-labelledby"].split()) <= texts
    assert len(found.all("figcaption")) == len(figures)
    assert len(found.all("caption")) >= 5


def test_the_tables_hold_the_numbers_themselves(spectral_page, spectra):
    measure, pairs = spectra
    values = [
        float(attributes["data-value"])
        for _, attributes in Page(spectral_page.read_text()).elements
        if "data-value" in attributes
    ]
    for expected in [*pairs.values, measure.trace, *measure.interval("trace")]:
        assert expected in values


def test_its_commands_can_be_carried_out(spectral_page, capsys, monkeypatch):
    monkeypatch.chdir(spectral_page.parent)
    lines = re.findall(r"hessian-spectrum (?:plot|query) [^<\n]+", spectral_page.read_text())
    assert len(lines) >= 9
    for i, line in enumerate(lines):
        words = shlex.split(line.replace("&#x27;", "'"))[1:]
        words += ["--overwrite"] if words[0] == "plot" else []
        assert main(words) == 0, (i, line, capsys.readouterr().err)


@pytest.mark.parametrize(("low", "is_negative"), [(-1.0, True), (0.5, False)])
def test_negative_curvature_is_said_where_it_is_certain(tmp_path, low, is_negative):
    text = written(tmp_path, *spectrum(low)).text
    assert ("Negative curvature" in text) == is_negative
    assert ("no minimum of this loss" in text) == is_negative


def test_another_matrix_than_the_hessian_says_nothing_of_minima(tmp_path, spectra):
    hs.save(tmp_path / "run.h5", *spectra, config={"operator": "gauss-newton-residual"})
    page.write([tmp_path / "run.h5"], tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text()).text
    assert "Negative curvature" in text
    assert "no minimum" not in text


def test_pairs_that_have_not_converged_and_unfinished_runs_are_told(tmp_path):
    pairs = EigenPairs(
        np.array([1.0, 2.0, 3.0]), np.array([0.5, 1e-9, 1e-9]), np.array([False, True, True])
    )
    text = written(tmp_path, pairs, finished=False).text
    assert "Not converged: 1 of 3 eigenpairs, with residuals up to 0.5" in text
    assert "This run is not finished" in text
    assert "state not finished" in text


def test_one_probe_has_no_error(tmp_path):
    import torch

    matrix = hs.Dense(torch.diag(torch.linspace(0, 1, 12).double()))
    text = written(tmp_path, hs.spectral_density(matrix, 1, 4)).text
    assert "one probe alone" in text


def test_every_kind_has_a_table_of_its_own_or_of_all_its_arrays(tmp_path):
    found = written(tmp_path, **named("plain"), trajectory=way())
    captions = sum(tag == "table" for tag, _ in found.elements)
    assert captions >= 8
    for said in ("Segments between iterates", "Pairs of networks", "By point", "By iterate"):
        assert said in found.text


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    assert "The file holds no result yet" in written(tmp_path, finished=False).text


# -- several runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 9])
def test_several_runs_are_compared_first_and_many_are_folded(tmp_path, spectra, count):
    folder = tmp_path / "runs"
    folder.mkdir()
    for i in range(count):
        hs.save(folder / f"run-{i}.h5", spectra[1], finished=i != 1)
    assert page.write([folder], tmp_path / "page.html") == count
    found = Page((tmp_path / "page.html").read_text())
    assert "Not finished: run-1" in found.text
    targets = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    links = [a["href"][1:] for a in found.all("a") if a["href"].startswith("#run-")]
    assert len(set(links)) == count
    assert set(links) <= targets
    opened = [a for a in found.all("details") if a.get("class") == "run"]
    assert len(opened) == count
    assert all(("open" in a) == (count <= page.OPEN) for a in opened)


def test_densities_of_several_runs_share_one_axis(tmp_path, spectra):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        hs.save(tmp_path / name / "run.h5", spectra[0])
    files = [tmp_path / name / "run.h5" for name in ("a", "b")]
    page.write(files, tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text()).text
    assert "Densities on one axis" in text
    assert str(tmp_path / "a" / "run") in text  # names repeat, so they are paths


def test_labelled_results_are_drawn_together_and_the_rest_is_folded(tmp_path, spectra):
    labelled = {f"eigenpairs/epoch-{i}": spectra[1] for i in range(5)}
    labelled |= {f"values/epoch-{i}": {"epoch": i} for i in range(5)}
    found = written(tmp_path, **labelled)
    assert "All 5 results" in found.text
    assert "2 further results: Eigenpairs" in found.text


# -- surfaces and maps ---------------------------------------------------------------------------


def test_plotly_is_there_where_a_surface_is_and_nowhere_else(tmp_path, spectral_page):
    pytest.importorskip("plotly")
    save_bowl(tmp_path / "bowl.h5")
    hs.save(tmp_path / "map.h5", small_map())
    for name, kind in (("bowl", "surface"), ("map", "heatmap")):
        page.write([tmp_path / f"{name}.h5"], tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        assert "plotly.js v" in text
        assert f'"type":"{kind}"' in text
        assert "<svg" in text.partition("<main")[2]
    assert "plotly.js v" not in spectral_page.read_text()


def test_without_plotly_the_page_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(parts.turning, "is_possible", lambda: False)
    save_bowl(tmp_path / "bowl.h5")
    page.write([tmp_path / "bowl.h5"], tmp_path / "page.html")
    found = Page((tmp_path / "page.html").read_text())
    assert "pip install" in found.text
    assert len(found.scripts) == 1
    assert (tmp_path / "page.html").stat().st_size < 300_000


# -- names in files are names --------------------------------------------------------------------


def test_nothing_in_a_file_becomes_markup_or_script(tmp_path):
    file = tmp_path / f"{LABEL.replace(chr(34), '')}.h5"
    save_named(file, HOSTILE)
    page.write([file], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    found, tame = Page(text), tmp_path / "tame.h5"
    save_named(tame, "tame")
    page.write([tame], tmp_path / "tame.html")
    expected = Page((tmp_path / "tame.html").read_text())
    assert {tag for tag, _ in found.elements} <= PAGE_TAGS | SVG_TAGS | {"clippath"}
    assert len(found.scripts) == len(expected.scripts)
    assert not any(name.startswith("on") for _, a in found.elements for name in a)
    assert found.text.count("hacked=1") > 10
    assert "\u202e" not in text


# -- the command ---------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_replaces_none(tmp_path, spectra, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hs.save("run.h5", spectra[1])
    words = ["report", "run.h5", "--out", "page.html"]
    assert main(words) == 0
    assert "written to page.html: 1 run, " in capsys.readouterr().out
    assert "hessian-spectrum report run.h5 --out page.html" in (tmp_path / "page.html").read_text()
    fails(capsys, words, "exists already")
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize("kind", ["damaged", "foreign", "missing", "empty folder", "suffix"])
def test_files_that_are_no_results_are_refused_in_one_line(
    tmp_path, spectra, capsys, monkeypatch, kind
):
    import h5py

    monkeypatch.chdir(tmp_path)
    hs.save("good.h5", spectra[1])
    content = bytearray((tmp_path / "good.h5").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.h5").write_bytes(content)
    with h5py.File("foreign.h5", "w") as file:
        file["x"] = 1
    (tmp_path / "none").mkdir()
    out = "page.txt" if kind == "suffix" else "page.html"
    words = {
        "damaged": ("damaged.h5", "damaged"),
        "foreign": ("foreign.h5", "not written by hessian_spectrum"),
        "missing": ("absent.h5", "no such file"),
        "empty folder": ("none", "holds no file"),
        "suffix": ("good.h5", "ends in .html"),
    }
    path, message = words[kind]
    fails(capsys, ["report", "good.h5", path, "--out", out], message)


def test_blocks_have_no_trace_and_no_ends_in_common(tmp_path):
    low, high = (spectrum(low, seed)[0] for seed, low in enumerate((-1.0, -5.0)))
    places = {f"values/{name}": {"block": float(i)} for i, name in enumerate("ab")}
    blocks = tmp_path / "blocks.h5"
    hs.save(blocks, a=low, b=high, **places)
    epochs = tmp_path / "epochs.h5"
    hs.save(epochs, a=low, b=high)
    for file, ends in ((blocks, None), (epochs, [-5.0, 9.0])):
        with hs.open(file) as run:
            row = page._row(Source("run", run), "run-1", [])
        assert np.isnan(row.trace), file
        told = [row.smallest, row.largest]
        assert np.isnan(told).all() if ends is None else told == pytest.approx(ends, abs=0.5), file
