"""Results of several files in one summary."""

import pytest
from run_files import two_run_files

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.storage import merge as merging


@pytest.fixture
def results(tmp_path):
    return two_run_files(tmp_path)


def test_what_cannot_be_merged_is_refused(results, tmp_path):
    summary = tmp_path / "all.h5"
    with hs.open(results[0]) as run:
        hs.save(tmp_path / "half.h5", run["density"], finished=False)
    for files, reason in (
        ([tmp_path / "half.h5"], "is not finished"),
        ([results[0], results[0]], "two files are called epoch-1"),
        ([], "no files"),
    ):
        with pytest.raises(InputError, match=reason):
            merging.merge(summary, files)
    with pytest.raises(InputError, match="is not a summary"):
        merging.merge(results[0], [results[1]])
    (tmp_path / "all.h5.lock").write_text('{"host": "elsewhere", "pid": 1}')
    with pytest.raises(InputError, match="another process is writing"):
        merging.merge(summary, results, patience=0.3)
    assert not summary.exists()
