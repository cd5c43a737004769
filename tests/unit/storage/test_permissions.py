"""The umask decides who may read results and saved states, whichever library writes the file."""

import os
import stat

import numpy as np
import pytest

from hessian_spectrum._core.atomic import replacing
from hessian_spectrum.storage.shards import ShardFolder


@pytest.fixture(params=[0o022, 0o027, 0o007, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_shards_and_manifests_have_the_permissions_that_the_umask_leaves(tmp_path, umask):
    folder = ShardFolder(tmp_path / "run.h5.d")
    entry = folder.write("a", {"x": np.arange(3.0)})
    folder.commit({"state": entry})
    folder.commit({"state": entry})  # the first manifest becomes the previous one
    modes = {path.name: mode(path) for path in folder.folder.iterdir()}
    assert len(modes) == 3 and set(modes.values()) == {0o666 & ~umask}


def test_a_file_that_its_owner_alone_may_read_is_opened_by_the_umask_only(tmp_path, umask):
    path = tmp_path / "a"
    with replacing(path) as temporary:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o600))  # as tempfile creates files
    assert mode(path) == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "no folder" / "run.h5"
    with pytest.raises(FileNotFoundError) as found, replacing(path):
        pass
    assert found.value.filename == str(path)
