"""Results show themselves in a notebook: a sentence, a picture, nothing that runs."""

import torch
from torch import nn

import hessian_spectrum as hs


def results():
    torch.manual_seed(0)
    data = torch.randn(20, 3), torch.arange(20) % 2
    ev = hs.Evaluator(nn.Linear(3, 2), nn.CrossEntropyLoss(), data)
    h = hs.Hessian(ev)
    yield hs.spectral_density(h, 2, 4)
    yield hs.eigenpairs(h, 1)
    yield hs.interpolate(ev, ev.theta, 2 * ev.theta, 5)
    yield hs.surface(ev, hs.directions.random(ev), 3)


def test_results_are_a_section_with_a_figure():
    for found in results():
        html = found._repr_html_()
        assert html.startswith("<section"), type(found)
        assert html.count("<svg") == 1, type(found)
        assert len(html) < 300_000
        assert "<script" not in html
        assert "style" not in html.split("<svg")[0]


def test_two_cells_have_no_name_in_common():
    first, second = (next(iter(results()))._repr_html_() for _ in range(2))
    names = [
        set(part.split('"')[0] for part in html.split(' id="')[1:]) for html in (first, second)
    ]
    assert names[0] and not names[0] & names[1]


def test_a_plain_text_stays():
    assert "<section" not in repr(next(iter(results())))
