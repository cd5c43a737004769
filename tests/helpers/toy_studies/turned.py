"""A check whose expected number is turned."""

from benchmarks.suite import Context, Outcome, Study


def run(context: Context, options: None) -> Outcome:
    check = context.check("two", 2.0, -2.1, -1.9, source="arithmetic", judged_from="test")
    return Outcome([check])


STUDY = Study(title="Is two minus two?", source="arithmetic", run=run, scales={"test": None})
