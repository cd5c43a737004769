"""Checks of what the command line refuses."""

import os

from hessian_spectrum.cli.main import main


def fails(capsys, argv, message):
    """Exit code 2, one line, and no file that was not there before."""
    capsys.readouterr()
    before = sorted(os.listdir())
    assert main(argv) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert sorted(os.listdir()) == before
