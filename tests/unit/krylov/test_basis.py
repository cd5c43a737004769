"""Krylov vectors on the device, in the host's memory or on a disk: the same numbers."""

import errno
import os
from pathlib import Path

import pytest
import torch
from prescribed_spectra import with_spectrum

import hessian_spectrum as hs
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.krylov import lanczos
from hessian_spectrum.krylov.storage import allocate

CPU = torch.device("cpu")


def run(place, dtype, on_step=lambda: None):
    operator = hs.Dense(with_spectrum(torch.linspace(-1, 3, 40)).to(dtype))
    probes = gaussian_probes(operator.layout, range(3), 0, dtype)
    state = lanczos.start(operator, probes, 15, place)
    for _ in range(15):
        state = state.step(operator)
        on_step()
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_place_gives_the_same_bits_and_a_folder_stays_empty(dtype, tmp_path):
    contents = []
    expected = run("device", dtype)
    on_disk = run(tmp_path, dtype, lambda: contents.extend(os.listdir(tmp_path)))
    for state in (run("host", dtype), on_disk):
        assert (state.alpha == expected.alpha).all() and (state.beta == expected.beta).all()
        assert torch.equal(state.basis, expected.basis)
    assert contents == []  # a file without a name, gone with the process
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_the_density_takes_a_folder_for_its_basis(estimator, tmp_path):
    operator = hs.Dense(with_spectrum(torch.linspace(-1, 3, 40)))
    folders = []
    measures = [
        hs.spectral_density(
            operator,
            2,
            10,
            estimator=estimator,
            basis=place,
            on_step=lambda _: folders.append(str(tmp_path) in Path("/proc/self/maps").read_text()),
        )
        for place in ("device", tmp_path)
    ]
    assert folders == 10 * [False] + 10 * [True]
    assert (measures[0].nodes == measures[1].nodes).all()
    assert (measures[0].weights == measures[1].weights).all()


def test_a_rank_without_entries_has_an_empty_basis_on_disk(tmp_path):
    assert allocate((2, 5, 0), torch.float32, CPU, tmp_path).shape == (2, 5, 0)


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_a_basis_begins_with_zeros(place, tmp_path):
    basis = allocate((2, 3, 1000), torch.float64, CPU, tmp_path if place == "disk" else place)
    assert basis.dtype == torch.float64
    assert not basis.any()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(hs.InputError, match=r"nowhere: cannot hold .* GiB .*No such file"):
        run(tmp_path / "nowhere", torch.float64)


def test_a_full_disk_is_refused_with_the_size_before_anything_is_computed(tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        asked.append(size)
        assert os.listdir(tmp_path) == []  # nothing that a kill could leave behind
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    asked = []
    monkeypatch.setattr(os, "posix_fallocate", full)
    shape = (4, 1024, 32 * 1024)  # half a GiB of float32
    with pytest.raises(hs.InputError, match=r"cannot hold 0\.50 GiB .*No space left") as error:
        allocate(shape, torch.float32, CPU, tmp_path)
    assert "use fewer probes or steps, more ranks, or another folder" in str(error.value)
    assert "\n" not in str(error.value)
    assert asked == [2**29]
    assert os.listdir(tmp_path) == []
