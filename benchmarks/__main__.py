"""The benchmark suite: every claim of the papers, and ours, by one command.

    python -m benchmarks list                              # studies, sources, scales
    python -m benchmarks run edge_of_stability --scale test
    python -m benchmarks run all --scale cpu --out results # minutes each, on two cores
    python -m benchmarks table results/cpu                 # Markdown: expected, found, holds
    python -m benchmarks collect part-*/cpu --out results/cpu
    python -m benchmarks compare before/cpu after/cpu
    python -m benchmarks submit all --scale gpu --tasks 8 --sbatch=--gpus=1

Run it in the checkout's root. Exit codes: 0 done, 1 a study failed or a check does not hold for no
known reason, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

from benchmarks.suite import SCALES, array_job, results, runner, tables
from benchmarks.suite.registry import FOLDER, Registry, UnknownStudy


def main(words: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(words)
    try:
        return args.action(args)
    except (
        UnknownStudy,
        results.NotAResult,
        array_job.NotSubmitted,
        FileNotFoundError,
    ) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def list_studies(args: argparse.Namespace) -> int:
    """Print each study with its source and scales; of one that is named, all that it says."""
    registry = Registry(args.studies)
    if args.names:
        for name in registry.chosen(args.names):
            study = registry.load(name)
            print(f"{name}: {study.title}\n{study.source}\n\n{registry.about(name)}\n")
            for scale, options in study.scales.items():
                print(f"  {scale}: {options}")
            print()
        return 0
    for name in registry.names():
        study = registry.load(name)
        print(f"{name:28} {study.group:9} {', '.join(study.scales)}\n    {study.title}")
        print(f"    {study.source}")
    return 0


def run_studies(args: argparse.Namespace) -> int:
    """Run studies, and print what they found."""
    registry = Registry(args.studies)
    names = registry.chosen(args.names)
    if args.share is not None:
        task, tasks = args.share
        names = names[task::tasks]
    plan = runner.Plan(
        args.scale,
        args.out,
        args.data,
        tuple(shlex.split(args.launcher)),
        args.jobs,
        args.minutes,
        args.threads,
        args.again,
        args.shared,
        registry,
    )
    if args.again:
        runner.remove(names, plan)
    signal.signal(signal.SIGTERM, _terminated)
    found = runner.run(names, plan, lambda text: print(text, flush=True))
    print(tables.summary(found))
    return int(any(result.failed for result in found.values()))


def collect(args: argparse.Namespace) -> int:
    """Merge results into one folder."""
    print(tables.summary(results.collect(args.folders, args.out)))
    return 0


def compare(args: argparse.Namespace) -> int:
    """Say what has changed between two folders of results."""
    print(tables.compared(results.read(args.before), results.read(args.after)))
    return 0


def table(args: argparse.Namespace) -> int:
    """Print the findings of a folder of results as a Markdown table."""
    found = results.read(args.folder)
    print(tables.markdown(found))
    print()
    print(tables.summary(found))
    return 0


def submit(args: argparse.Namespace) -> int:
    """Share the studies out over a SLURM job array."""
    names = Registry(args.studies).chosen(args.names)
    tasks = min(args.tasks, len(names))
    options = ["--data", str(args.data.resolve()), "--studies", str(args.studies.resolve())]
    if args.launcher:
        options += ["--launcher", args.launcher]
    array, last = array_job.scripts(names, args.scale, args.out, tasks, args.sbatch, options)
    print(f"{array}\n{last}" if args.dry_run else array_job.submit(array, last, args.out))
    return 0


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(75)  # the same command goes on


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help=list_studies.__doc__)
    command.add_argument("names", nargs="*", metavar="NAME", help="tell all about these")
    _add_studies(command)
    command.set_defaults(action=list_studies)

    command = commands.add_parser("run", help=run_studies.__doc__)
    _add_choice(command)
    command.add_argument("--jobs", type=int, default=1, help="studies at once")
    command.add_argument("--threads", type=int, help="of torch, for each study")
    command.add_argument("--minutes", type=float, help="stop a study after so many, as failed")
    command.add_argument("--again", action="store_true", help="delete their results first")
    command.add_argument("--share", type=_share, metavar="I/N", help="every Nth study from the Ith")
    command.add_argument("--shared", type=Path, help="folder of networks; default: OUT/shared")
    command.set_defaults(action=run_studies)

    command = commands.add_parser("collect", help=collect.__doc__)
    command.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(action=collect)

    command = commands.add_parser("compare", help=compare.__doc__)
    command.add_argument("before", type=Path)
    command.add_argument("after", type=Path)
    command.set_defaults(action=compare)

    command = commands.add_parser("table", help=table.__doc__)
    command.add_argument("folder", type=Path)
    command.set_defaults(action=table)

    command = commands.add_parser("submit", help=submit.__doc__)
    _add_choice(command)
    command.add_argument("--tasks", type=int, default=8, help="of the array")
    command.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="such as --sbatch=--gpus=1"
    )
    command.add_argument("--dry-run", action="store_true", help="print the scripts")
    command.set_defaults(action=submit)
    return parser


def _add_choice(command: argparse.ArgumentParser) -> None:
    data = Path(os.environ.get("HESSIAN_SPECTRUM_DATA", "../shared/data"))
    command.add_argument("names", nargs="+", metavar="NAME", help="or a pattern, or all")
    _add_studies(command)
    command.add_argument("--scale", choices=SCALES, default="test")
    command.add_argument("--out", type=Path, default=Path("results"))
    command.add_argument(
        "--data", type=Path, default=data, help="folder of MNIST, cifar10.npz, ptb"
    )
    command.add_argument(
        "--launcher", default="", help="before each command, as 'torchrun --nproc-per-node 2'"
    )


def _add_studies(command: argparse.ArgumentParser) -> None:
    command.add_argument("--studies", type=Path, default=FOLDER, help="folder of other studies")


def _share(text: str) -> tuple[int, int]:
    task, _, tasks = text.partition("/")
    if not (task.isdecimal() and tasks.isdecimal() and int(task) < int(tasks)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 0 to N - 1")
    return int(task), int(tasks)


if __name__ == "__main__":
    sys.exit(main())
