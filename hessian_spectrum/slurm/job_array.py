"""Job arrays: which words of a command differ from task to task, and the names of the tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hessian_spectrum._core.errors import InputError

PLACEHOLDER = re.compile(r"\{(name|checkpoint)\}")

# ``name_of`` in the shell, of a script in which users edit the paths.
SHELL_NAME = "name=${checkpoint##*/}\n[ \"${name%.*}\" = '' ] || name=${name%.*}"


def name_of(checkpoint: str) -> str:
    """The file's name without its last suffix: ``nets/epoch-5.pt`` -> ``epoch-5``."""
    file = checkpoint.rpartition("/")[2]
    return file.rpartition(".")[0] or file


def of_task(text: str, checkpoint: str) -> str:
    """``text`` with the placeholders of the task of that checkpoint filled in."""
    values = {"name": name_of(checkpoint), "checkpoint": checkpoint}
    return PLACEHOLDER.sub(lambda found: values[found[1]], text)


def check_names(checkpoints: Sequence[str]) -> None:
    """Raise InputError for names that cannot be those of result files, or that repeat."""
    names = [name_of(checkpoint) for checkpoint in checkpoints]
    for checkpoint, name in zip(checkpoints, names):
        if not checkpoint.isprintable() or checkpoint[:1] == "-" or name[:1] in ("", "-", "."):
            raise InputError(
                f"--checkpoints {checkpoint!r}: its name would become that of a result; expected "
                "no control characters, and neither '-' nor '.' as the first character"
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"several checkpoints are called {twice[0]}, so their results would share one "
            "file; rename them"
        )
