"""Every Krylov state is taken apart and put together again without a change of a bit."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from prescribed_spectra import with_spectrum

import hessian_spectrum as hs
from hessian_spectrum.krylov import block_lanczos, krylov_schur, lanczos
from hessian_spectrum.krylov.state import StateArrays

N, B, STEPS = 40, 2, 5
VALUES = np.concatenate([np.linspace(-1, 1, N - 2), [5, 9]])


def operator(values=VALUES):
    return hs.Dense(with_spectrum(values))


def probes(count=B):
    return torch.randn(count, N, generator=torch.Generator().manual_seed(3)).double()


STATES = {
    "recurrences": lambda op: lanczos.start(op, probes(), 9),
    "block": lambda op: block_lanczos.start(op, probes(), 9),
    "lean": lambda op: block_lanczos.start(op, probes(), 9, lean=True),
    "ritz": lambda op: krylov_schur.start(op, probes(), 30),
}


def after(state, op, steps):
    for _ in range(steps):
        state = state.step(op)
    return state


def restored(state, op, room=30):
    """As storage does it: numbers through JSON, vectors into a basis with room for more."""
    arrays = state.to_arrays()
    nested = {
        name: a.tolist() if isinstance(a, np.ndarray) else [block.tolist() for block in a]
        for name, a in arrays.coefficients.items()
    }
    nested, metadata = json.loads(json.dumps([nested, dict(arrays.metadata)]))
    vectors = torch.zeros(state.basis_shape(room, op.layout), dtype=arrays.vectors.dtype)
    vectors[:, : arrays.vectors.shape[1]] = arrays.vectors
    return type(state).from_arrays(StateArrays(vectors, nested, metadata))


def assert_same(a, b):
    first, second = a.to_arrays(), b.to_arrays()
    assert torch.equal(first.vectors, second.vectors)
    assert first.metadata == second.metadata
    assert first.coefficients.keys() == second.coefficients.keys()
    for name, values in first.coefficients.items():
        for x, y in zip(values, second.coefficients[name], strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.shape(x) == np.shape(y)


@pytest.mark.parametrize("steps", [0, 1, STEPS])
@pytest.mark.parametrize("kind", STATES)
def test_a_state_that_was_taken_apart_takes_the_same_steps(kind, steps):
    op = operator()
    state = after(STATES[kind](op), op, steps)
    again = restored(state, op)
    assert_same(state, again)
    assert (again.num_steps, again.window, again.restarts) == (steps, state.window, 0)
    low, high = state.window
    assert state.to_arrays().vectors.shape == (B if kind == "recurrences" else 1, high - low, N)
    torch.testing.assert_close(again.next_vectors, state.next_vectors, rtol=0, atol=0)
    if steps:  # the first block's rows are not contiguous, which BLAS rounds differently
        assert_same(after(again, op, 3), after(state, op, 3))


@pytest.mark.parametrize("steps", [0, 1, STEPS])
def test_a_space_that_is_searched_is_taken_apart_too(steps):
    op = operator()
    space = after(krylov_schur.start(op, probes(), 30), op, 3)
    locked = np.linalg.eigh(space.h)[1][:, :4]
    space = after(krylov_schur.refreshed(op, space, locked, probes(1), search=True), op, steps)
    other = restored(space, op)
    assert_same(space, other)
    assert_same(after(space, op, 3), after(other, op, 3))
    assert other.search is not None and len(other.search.start) == steps


@pytest.mark.parametrize("kind", STATES)
def test_a_finished_state_keeps_the_shapes_of_its_empty_arrays(kind):
    op = operator(np.repeat([1.0, 2.0], N // 2))  # invariant after two steps of any probes
    state = after(STATES[kind](op), op, 2)
    assert state.is_finished and not STATES[kind](op).is_finished
    again = restored(state, op)
    assert again.is_finished
    assert_same(state, again)


def test_vectors_of_a_restarted_space_are_new_ones():
    op = operator()
    state = after(STATES["ritz"](op), op, STEPS)
    again = krylov_schur.restarted(state, np.linalg.eigh(state.h)[1][:, -4:])
    assert (again.restarts, again.window) == (1, (0, 4 + B))
    assert_same(restored(again, op), again)


@pytest.mark.parametrize("kind", ["recurrences", "block"])
def test_the_matrix_that_was_multiplied_is_compressed_to_the_recurrences_own(kind):
    op = operator()
    state = after(STATES[kind](op), op, STEPS)
    for reduced, t in zip(state.reduced(), state.compressed(op), strict=True):
        np.testing.assert_allclose(t, reduced.t, atol=1e-14)
    first = state.basis[0] if kind == "block" else state.basis[0, 0]
    along = state.coordinates(first, op.layout.world)
    assert [len(q) for q in along] == [len(reduced.t) for reduced in state.reduced()]
    np.testing.assert_allclose(along[0], np.eye(len(along[0]))[0], atol=1e-14)


def test_states_are_frozen():
    op = operator()
    for make in STATES.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            make(op).scale = 1.0
