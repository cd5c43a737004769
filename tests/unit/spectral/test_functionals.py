"""The table of queries: one row makes a query, wherever queries are asked, bounded or listed."""

import ast
from typing import get_args

import numpy as np
import pytest
from locations import ROOT

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli import read_commands, value_queries
from hessian_spectrum.spectral import functionals, queries
from hessian_spectrum.spectral.functionals import MeasureQuery
from hessian_spectrum.spectral.measure import SpectralMeasure


def some_measure():
    rng = np.random.default_rng(3)
    weights = rng.random((4, 12))
    weights /= weights.sum(axis=1, keepdims=True)
    return SpectralMeasure(
        np.sort(rng.normal(size=12)), weights, 50, np.zeros(12), np.zeros(12, bool)
    )


def names_in(path):
    """Names of queries that this module spells out, docstrings apart."""
    tree = ast.parse(path.read_text())
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node not in docstrings
    }
    return {name for name in value_queries.NAMES if name in texts}


def test_only_the_table_and_the_methods_list_the_queries():
    package = ROOT / "hessian_spectrum"
    found = {
        str(path.relative_to(package)): names_in(path) for path in sorted(package.rglob("*.py"))
    }
    half = len(functionals.OF_MEASURE) / 2
    listing = {
        path for path, names in found.items() if len(names & {*functionals.OF_MEASURE}) > half
    }
    assert listing == {"spectral/functionals.py", "spectral/measure.py"}
    assert found["spectral/measure.py"] == set(functionals.OF_MEASURE)
    # Errors, queries by name and the command line know none.
    for path in ("spectral/uncertainty.py", "spectral/queries.py", "cli/read_commands.py"):
        # Kinds, views and options of pictures.
        named = {"density", "eigenvalue", "eigenvalues", "participation", "cosine", "floor"}
        assert found[path] <= named, path


def test_the_command_line_offers_every_row():
    rows = [row for table in value_queries.TABLES.values() for row in table.values()]
    assert {*functionals.OF_MEASURE.values(), *functionals.OF_PAIRS.values()} <= {*rows}
    assert {row.name for row in rows} == set(get_args(read_commands.Query))
    for row in rows:
        assert f"{row.usage}: {row.about}" in value_queries.described()


def test_the_methods_take_what_their_rows_say():
    for name, row in functionals.OF_MEASURE.items():
        member = getattr(SpectralMeasure, name)
        if isinstance(member, property):
            assert not row.arguments
        else:
            assert member.__code__.co_varnames[1 : member.__code__.co_argcount] == row.arguments


def test_a_new_query_takes_one_row(monkeypatch):
    row = MeasureQuery(
        name="part_above",
        about="share of the eigenvalues from X upwards",
        arguments=("x",),
        defaults=(0.0,),
        per_probe=lambda measure, x: measure.masses(x, np.inf),
        thresholds=lambda measure, x: (x, np.inf, 1.0, 1.0),
        bounds=lambda measure, x: (0.0, 1.0),
    )
    monkeypatch.setitem(functionals.OF_MEASURE, row.name, row)
    measure = some_measure()
    for args in ((), (0.3,)):
        a = args[0] if args else 0.0
        answer = queries.ask(measure, row.name, args)
        assert answer["value"] == measure.mass(a, np.inf)
        assert answer["standard_error"] == measure.standard_error("mass", a, np.inf)
        assert answer["interval"] == measure.interval("mass", a, np.inf).tolist()
        assert np.isnan(measure.truncation(row.name, *args))
    assert queries.sentence(answer).startswith("part_above(0.3) = 0.")
    assert value_queries.kinds_of(row.name) == ["density"]
    assert "part_above [X]: share of the eigenvalues from X upwards" in value_queries.described()


@pytest.mark.parametrize(
    "numbers, message",
    [((), r"mass takes 2 numbers \(A B\), got 0"), ((1.0,) * 3, r"\(A B\), got 3")],
)
def test_wrong_numbers_are_refused_with_the_row_s_arguments(numbers, message):
    with pytest.raises(InputError, match=message):
        queries.ask(some_measure(), "mass", numbers)
    with pytest.raises(InputError, match=r"density takes 1 numbers \(T\), got 2"):
        queries.ask(some_measure(), "density", (1.0, 2.0))
    with pytest.raises(
        InputError, match="no query 'size' of density; expected one of density, mass"
    ):
        queries.ask(some_measure(), "size", ())
