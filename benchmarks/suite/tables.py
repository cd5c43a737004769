"""Results in words: the table of findings, and what has changed between two sets of results."""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmarks.suite.findings import FAILS, Finding
from benchmarks.suite.results import Result

Z95 = 1.96


def markdown(results: Mapping[str, Result]) -> str:
    """A table of all findings, with the reasons where a claim does not hold below it."""
    lines = [
        "| study | claim | source | expected | found | |",
        "|---|---|---|---|---|---|",
    ]
    reasons: list[str] = []
    for name, result in results.items():
        if result.status != "done":
            words = {"failed": "failed", "no data": "no data here"}.get(result.status, "skipped")
            lines.append(
                f"| {name} | {_cell(result.title)} | {_cell(result.source)} | | | {words} |"
            )
            continue
        for finding in result.findings:
            verdict: str = finding.verdict
            if verdict == FAILS and finding.why_not:
                if finding.why_not not in reasons:
                    reasons.append(finding.why_not)
                verdict += f" ({reasons.index(finding.why_not) + 1})"
            cells = (name, finding.claim, finding.source, finding.expected, finding.found, verdict)
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    lines += [""] if reasons else []
    return "\n".join([*lines, *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))])


def summary(results: Mapping[str, Result]) -> str:
    """A line: how many studies and claims, and what became of them."""
    found = [f for r in results.values() for f in r.findings]
    counts = {verdict: sum(f.verdict == verdict for f in found) for verdict in _verdicts(found)}
    failed = [name for name, r in results.items() if r.status == "failed"]
    words = [f"{len(results)} studies", f"{len(found)} claims"]
    words += [f"{count} {verdict}" for verdict, count in counts.items()]
    return ", ".join([*words, *([f"failed: {', '.join(failed)}"] if failed else [])])


def compared(before: Mapping[str, Result], after: Mapping[str, Result]) -> str:
    """What has changed: verdicts, numbers by more than their uncertainties, studies.

    The interval of a difference is 1.96 standard deviations, of both measurements together; where
    one is not known, a relative change of 10 % counts.
    """
    lines = []
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            lines.append(f"{name}: only in the {'second' if name in after else 'first'} set")
            continue
        one, two = before[name], after[name]
        if one.status != two.status:
            lines.append(f"{name}: {one.status} -> {two.status} {two.error}".rstrip())
        old, new = ({f.claim: f for f in r.findings} for r in (one, two))
        for claim in [*old, *(c for c in new if c not in old)]:
            said = _change(old.get(claim), new.get(claim))
            if said:
                lines.append(f"{name}: {claim}: {said}")
    return "\n".join(lines) or "nothing has changed by more than its uncertainty"


def _change(old: Finding | None, new: Finding | None) -> str:
    if old is None or new is None:
        return "only in the second set" if old is None else "only in the first set"
    verdict = "" if old.verdict == new.verdict else f"; {old.verdict} -> {new.verdict}"
    difference = new.measured - old.measured
    if old.uncertainty is not None and new.uncertainty is not None:
        bound = Z95 * math.hypot(old.uncertainty, new.uncertainty)
        said = f"{difference:+.3g} +- {bound:.2g} (95 %)"
    else:
        bound = 0.1 * abs(old.measured)
        said = f"{difference:+.3g}"
    if math.isnan(difference):
        is_same = math.isnan(old.measured) and math.isnan(new.measured)
    else:
        is_same = abs(difference) <= bound
    return "" if is_same and not verdict else f"{old.found} -> {new.found}, {said}{verdict}"


def _verdicts(findings: list[Finding]) -> list[str]:
    return sorted({f.verdict for f in findings}, reverse=True)  # holds, does not hold, cannot ...


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
