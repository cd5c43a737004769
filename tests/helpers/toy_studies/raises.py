"""A study that fails."""

from benchmarks.suite import Context, Outcome, Study


def run(context: Context, options: None) -> Outcome:
    raise ValueError("no luck")


STUDY = Study(title="Fails", source="nobody", run=run, scales={"test": None})
