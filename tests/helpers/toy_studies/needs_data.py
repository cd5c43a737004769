"""A study of data that no test machine has, and one that hangs."""

from benchmarks.suite import Context, Outcome, Study


def run(context: Context, options: None) -> Outcome:
    return Outcome([context.check("never", context.data("mnist").is_dir(), 1, 1, source="it")])


STUDY = Study(title="Reads", source="nobody", run=run, scales={"test": None}, data=("mnist",))
