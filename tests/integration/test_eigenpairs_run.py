"""The eigenpairs command: interrupted and resumed, warm starts, vectors in files and shards."""

import dataclasses

import numpy as np
import pytest
import torch
from density_runs import StopAfterOneSave, contents, problem
from prescribed_spectra import with_spectrum

import hessian_spectrum as hs
from hessian_spectrum.algorithms import residual_check
from hessian_spectrum.algorithms.convergence import Goal
from hessian_spectrum.algorithms.eigenpairs import advance, first
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.density import Density
from hessian_spectrum.commands.eigenpairs import Eigenpairs
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.config import DensityConfig, EigenpairsConfig
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.storage import hdf5_schema
from hessian_spectrum.storage.krylov_state import RecurrenceStore
from hessian_spectrum.storage.shards import ShardedVectors


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run.h5"


def run(out, stop=None, arguments=None, **options):
    # Minutes of 0: the state is saved after each step.
    fields = {"k": 3, "tol": 1e-8, "checkpoint_minutes": 0.0, "hvp": "reverse"}
    config = EigenpairsConfig(out=out, **{**fields, **options})
    runner.run(Eigenpairs, config, Problem(**(arguments or problem())), hs.World(), stop)


def density(**options):
    config = DensityConfig(num_probes=4, hvp="reverse", **options)
    runner.run(Density, config, Problem(**problem()), hs.World())


def pairs_of(out):
    with hs.open(out) as file:
        assert file.finished
        pairs = file["eigenpairs"]
        return dataclasses.replace(pairs, vectors=np.asarray(pairs.vectors))


def dense():
    H = hs.Hessian(hs.Evaluator(**problem()))
    return H @ torch.eye(H.n, dtype=H.dtype)


@pytest.mark.parametrize(
    "options", [{}, {"basis_size": 15, "k": 2}, {"block_size": 1}, {"certify": True}]
)
def test_interrupted_and_resumed_gives_the_bits_of_a_straight_run(out, options):
    straight = out.with_name("straight.h5")
    run(straight, **options)
    expected = pairs_of(straight)
    exact = torch.linalg.eigvalsh(dense()).numpy()
    assert np.abs(expected.values[[0, -1]] - exact[[0, -1]]).max() <= 1e-12
    stops = 0
    resume = False
    while stops < 4:  # a new process after each save
        try:
            seen = len(contents(out))
            run(out, StopAfterOneSave(out), resume=resume, **options)
            break
        except Interrupted:
            stops, resume = stops + 1, True
            with hs.open(out) as file:
                assert not file.finished and len(file["eigenpairs"]) <= len(expected)
            assert seen <= len(contents(out))
    if stops == 4:
        run(out, resume=True, **options)
    found = pairs_of(out)
    for name in ("values", "residuals", "vectors"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert stops > 2 and not out.with_name("run.h5.d").exists()


def test_what_a_bound_on_products_left_open_is_resumed_with_more(out):
    run(out, max_products=10)
    few = pairs_of(out)
    assert not few.converged.all()
    run(out, resume=True)
    assert pairs_of(out).converged.all()
    with pytest.raises(hs.InputError, match="finished: there is nothing to resume"):
        run(out, resume=True)


def test_a_signal_during_products_in_float64_saves_and_leaves(out, monkeypatch):
    straight, stop = out.with_name("straight.h5"), StopRequest()
    run(straight, certify=True)
    checked_pairs = residual_check.checked_pairs

    def interrupted(*args):
        stop.name = "SIGTERM"  # the space is finished
        return checked_pairs(*args)

    with monkeypatch.context() as patch:
        patch.setattr(residual_check, "checked_pairs", interrupted)
        with pytest.raises(Interrupted):
            run(out, stop, certify=True, checkpoint_minutes=60.0)
    run(out, certify=True, resume=True)
    for name in ("values", "residuals", "vectors"):
        found, expected = (getattr(pairs_of(path), name) for path in (out, straight))
        assert np.array_equal(found, expected), name


def test_what_float32_adds_is_stored_and_said(out, capsys):
    """In bfloat16, which adds more: nothing converges until each pair has its own residual."""
    low = {"arguments": problem(dtype=torch.float32), "hvp_dtype": "bfloat16", "tol": 1e-2}
    run(out, **low)
    said, found = capsys.readouterr().out, pairs_of(out)
    with hs.open(out) as file:
        error = file["values"]["arithmetic_error"]
    assert 0 < error and f"products in float64 differ by {error:.1e}" in said
    certified = out.with_name("certified.h5")
    run(certified, certify=True, **low)
    assert (pairs_of(certified).residuals < found.residuals).all()
    assert "products in float64" not in capsys.readouterr().out


def test_another_question_cannot_be_resumed(out):
    run(out, max_products=10)
    with pytest.raises(hs.InputError, match="--k was 3 and is now 2"):
        run(out, resume=True, k=2)


def test_eigenvectors_of_an_earlier_run_save_products(out):
    run(out, k=1)
    again, cold = out.with_name("again.h5"), out.with_name("cold.h5")
    run(again, start=out, tol=1e-4, k=1)
    run(cold, tol=1e-4, k=1)
    work = {}
    for path in (again, cold):
        with hs.open(path) as file:
            work[path.stem] = file.provenance["products"]
    assert np.abs(pairs_of(again).values - pairs_of(cold).values).max() <= 1e-7
    assert work["again"] < work["cold"]


def test_a_densitys_krylov_space_is_gone_on_with(out):
    space = out.with_name("density.h5")
    density(out=space, num_steps=9)
    run(out, start=space)
    exact = torch.linalg.eigvalsh(dense()).numpy()
    assert np.abs(pairs_of(out).values - exact[[0, 1, 2, -3, -2, -1]]).max() <= 1e-12
    with hs.open(out) as file:
        going_on = file.provenance["products"]
    cold = out.with_name("cold.h5")
    run(cold)
    with hs.open(cold) as file:
        assert going_on < file.provenance["products"]


def test_a_krylov_space_of_another_matrix_is_refused(out):
    space = out.with_name("density.h5")
    density(out=space, operator="gauss-newton", num_steps=5)
    with pytest.raises(hs.InputError, match=r"another matrix .*--operator was 'gauss-newton'"):
        run(out, start=space)
    with pytest.raises(hs.InputError, match=r"another matrix .*the loss was"):
        run(out, start=space, operator="gauss-newton", arguments=problem(weight_decay=0.1))
    assert not out.exists()


def test_a_start_that_is_none_is_refused(out):
    run(out, vectors=False)
    with pytest.raises(hs.InputError, match="holds neither eigenvectors nor"):
        run(out.with_name("other.h5"), start=out)
    assert not out.with_name("other.h5").exists()


def test_vectors_too_large_for_the_file_are_written_as_shards_and_read_lazily(out, monkeypatch):
    straight = out.with_name("straight.h5")
    run(straight)
    monkeypatch.setattr(hdf5_schema, "MAX_VECTOR_BYTES", 100)
    run(out)
    assert any("vectors-rank" in name for name in contents(out))
    with hs.open(out) as file:
        lazy = file["eigenpairs"].vectors
        assert isinstance(lazy, ShardedVectors)
        assert np.array_equal(lazy[1], pairs_of(straight).vectors[1])
    with pytest.raises(hs.InputError, match="finished: there is nothing to resume"):
        run(out, resume=True)


def test_a_saved_space_goes_on_where_it_was(tmp_path):
    """Whatever its restarts left in the store: vectors that were turned are written again."""
    operator = hs.Dense(with_spectrum(np.linspace(-1, 1, 60)))
    goal = Goal(2, "both", 1e-10, 4000, 0)
    store = RecurrenceStore(tmp_path / "state", World())
    space, found = first(operator, goal, 2, 20), None
    restarts = set()
    while found is None:
        space, found = advance(operator, space, goal)
        store.save(space, operator.layout, {})
        restarts.add(space.restarts)
        other = RecurrenceStore(tmp_path / "state", World())
        saved = other.manifest()
        loaded = other.load(saved, operator.layout, operator.dtype, 20)
        used = space.order + space.width
        assert torch.equal(loaded.basis[:used], space.basis[:used])
        assert np.array_equal(loaded.h, space.h) and np.array_equal(loaded.leak, space.leak)
        assert loaded.coupling.shape == space.coupling.shape
    assert len(restarts) > 3
