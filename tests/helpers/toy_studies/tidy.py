"""A study with a check that holds, one that cannot be judged, and a known exception."""

from dataclasses import dataclass

from benchmarks.suite import Context, Outcome, Study


@dataclass(frozen=True)
class Options:
    number: float = 2.0


def run(context: Context, options: Options) -> Outcome:
    times = context.folder / "times"
    times.write_text(times.read_text() + "x" if times.exists() else "x")
    findings = [
        context.check("two", options.number, 1.9, 2.1, source="arithmetic", judged_from="test"),
        context.check("large", 0.0, 1.0, 2.0, source="a paper"),
        context.check(
            *("exception", 0.0, 1.0, 2.0),
            source="a paper",
            judged_from="test",
            why_not="too small | here",
            uncertainty=0.5,
        ),
    ]
    print("said by tidy")
    return Outcome(findings, {"numbers/two": [options.number]}, notes="a note")


STUDY = Study(
    title="Is two two?", source="arithmetic", run=run, scales={"test": Options(), "cpu": Options()}
)
