"""A study whose process is killed in its first run, and that goes on in the second."""

import os
import signal

from benchmarks.suite import Context, Outcome, Study


def run(context: Context, options: None) -> Outcome:
    half = context.folder / "half"
    if not half.exists():
        half.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome([context.check("half", 1, 1, 1, source="it", judged_from="test")])


STUDY = Study(title="Is killed", source="nobody", run=run, scales={"test": None})
