"""Command lines, and checks of what is refused."""

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


def replaced(words, option, *values):
    """``words`` with other values of an option."""
    place = words.index(option)
    end = next((i for i in range(place + 1, len(words)) if words[i].startswith("--")), len(words))
    return [*words[:place], option, *values, *words[end:]]
