"""Job scripts: the text is a pure function of named parameters.

All launchers treat signals, requeues and exit codes alike: SLURM signals the script's shell before
the time limit, the shell signals every rank, ranks save their state and end with exit code 75, and
the job is requeued, a limited number of times. ``jobs/`` holds examples of these scripts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.submission import Resources


def script(
    resources: Resources,
    command: Sequence[str],
    checkpoints: Sequence[str] = (),
    summary: str | None = None,
) -> str:
    """The text of a job that runs ``hessian-spectrum COMMAND`` on all ranks until it is done.

    Args:
        command: the words of the command line, with ``--out``; ``--resume`` is added.
        checkpoints: paths, one task of a job array for each. In ``command``, ``{checkpoint}``
            stands for the task's path and ``{name}`` for its name without suffix.
        summary: a file into which each task of an array merges its result.

    Raises:
        InputError: resources that no batch system grants; a command without ``--out`` or with
            ``--overwrite``; an array without ``{name}`` in ``--out`` or without ``{checkpoint}``,
            with names that repeat, or by mpirun; these words or a summary without an array.
    """
    resources.check()
    _check_words(command, checkpoints, summary)
    if resources.launcher == "mpirun":
        if checkpoints:
            raise InputError("a job array needs a batch system; use --launcher srun")
        settings = f"{_MPI_HEAD}\n{_settings(resources)}"
        return _joined([settings, _setup(resources), _command(command), _MPI_TAIL])
    parts = [
        _directives(resources, len(checkpoints)),
        _limits(resources),
        _setup(resources),
        _task(checkpoints),
        _command(command),
        _SLURM_ENVIRONMENT,
        _finished(command, checkpoints),
        _SRUN if resources.launcher == "srun" else _TORCHRUN,
        _merge(command, summary),
        _SLURM_TAIL,
    ]
    return _joined([part.replace("LOGS", shlex.quote(resources.logs)) for part in parts])


def output_of(command: Sequence[str]) -> str | None:
    """The value of ``--out`` among the words of a command; None without it."""
    for word, after in zip(command, [*command[1:], None]):
        if word == "--out":
            return after
        if word.startswith("--out="):
            return word.removeprefix("--out=")
    return None


def _check_words(command: Sequence[str], checkpoints: Sequence[str], summary: str | None) -> None:
    text, out = " ".join(command), output_of(command)
    if out is None:
        raise InputError(
            "the command has no --out, so the job could not be resumed; add --out FILE.h5"
        )
    if "--overwrite" in command:
        raise InputError("--overwrite: a requeued job would start from the beginning; leave it out")
    if not checkpoints and re.search(r"\{(name|checkpoint)\}", text):
        raise InputError("{name} and {checkpoint} belong to a job array; add --checkpoints FILES")
    if summary and not checkpoints:
        raise InputError("--summary belongs to a job array; add --checkpoints FILES")
    if not checkpoints:
        return
    names = [Path(path).stem for path in checkpoints]
    twice = sorted({name for name in names if names.count(name) > 1})
    if "{name}" not in out or "{checkpoint}" not in text:
        raise InputError(
            "an array needs {name} in --out and {checkpoint}: --checkpoint {checkpoint} "
            "--out 'spectra/{name}.h5'"
        )
    if twice:
        raise InputError(
            f"several checkpoints are called {twice[0]}, so their results would share one "
            "file; rename them"
        )


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _directives(resources: Resources, tasks: int) -> str:
    # torchrun: one task per node, which starts the node's ranks.
    within = resources.launcher == "torchrun"
    cpus = resources.cpus * (resources.ranks if within else 1)
    log = "%x-%A_%a.log" if tasks else "%x-%j.log"
    options = {
        "job-name": resources.name,
        "nodes": resources.nodes,
        "ntasks-per-node": 1 if within else resources.ranks,
        "gpus-per-node": resources.gpus or None,
        "cpus-per-task": cpus,
        "mem": resources.mem,
        "time": resources.minutes,
        "partition": resources.partition,
        "account": resources.account,
        "array": f"0-{tasks - 1}" if tasks else None,
        "signal": f"B:USR1@{resources.signal_seconds}",
        "output": f"{resources.logs}/{log}",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    return "\n".join(["#!/bin/bash -l", *lines, "#SBATCH --requeue"])


def _limits(resources: Resources) -> str:
    ranks = resources.ranks if resources.launcher == "torchrun" else 1
    return f"ranks={ranks}  # per task\nmax_requeues={resources.requeues}"


def _setup(resources: Resources) -> str:
    return "\n".join(resources.setup)


def _task(checkpoints: Sequence[str]) -> str:
    if not checkpoints:
        return ""
    listed = "\n".join(f"  {shlex.quote(path)}" for path in checkpoints)
    return (
        f"checkpoints=(\n{listed}\n)\n"
        "checkpoint=${checkpoints[$SLURM_ARRAY_TASK_ID]}\n"
        'name=$(basename "${checkpoint%.*}")'
    )


def _command(command: Sequence[str]) -> str:
    words = [_quoted(word) for word in command if word != "--resume"]
    return f"command=(-m hessian_spectrum {' '.join(words)} --resume)"


def _quoted(word: str) -> str:
    """The word, quoted for the shell; {name} and {checkpoint} become shell variables."""
    parts = re.split(r"\{(name|checkpoint)\}", word)
    text = [shlex.quote(p) if i % 2 == 0 else f'"${p}"' for i, p in enumerate(parts) if p]
    return "".join(text) or "''"


def _settings(resources: Resources) -> str:
    return (
        f"ranks={resources.ranks * resources.nodes}\n"
        f"max_restarts={resources.requeues}\n"
        f"export OMP_NUM_THREADS={resources.cpus}"
    )


def _finished(command: Sequence[str], checkpoints: Sequence[str]) -> str:
    """Skip a finished result, when an array is submitted again or a job is requeued."""
    out = _quoted(output_of(command) or "")
    again = "" if checkpoints else '[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && '
    return (
        f"code=\nif {again}[ -e {out} ] &&\n"
        f"  python -m hessian_spectrum info --json {out} | grep -q '\"finished\": true'; then\n"
        f"  echo {out} is finished already\n  code=0\nfi"
    )


def _merge(command: Sequence[str], summary: str | None) -> str:
    if summary is None:
        return ""
    out = _quoted(output_of(command) or "")
    return (
        '[ "$code" != 0 ] ||\n'
        f"  python -m hessian_spectrum merge {shlex.quote(summary)} {out} || code=$?"
    )


_SLURM_ENVIRONMENT = """
mkdir -p LOGS
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / ranks))
# Launchers mask the exit codes of ranks, so ranks write theirs to this file.
export HESSIAN_SPECTRUM_EXIT=$PWD/LOGS/exit-$SLURM_JOB_ID
rm -f "$HESSIAN_SPECTRUM_EXIT"
# A requeued job keeps its number; the restart count tells its logs apart.
echo "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST, $(date -Is)"
"""

_SRUN = """
# Before the time limit SLURM sends USR1 to this shell only; pass it on to every rank.
trap 'scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
if [ -z "$code" ]; then
  srun --kill-on-bad-exit=1 --open-mode=append --output=LOGS/%x-%j-r%t.log python "${command[@]}" &
  step=$!
  # wait returns 138 as soon as the trap has run, before the step ends.
  while wait "$step"; code=$?; [ "$code" = 138 ]; do :; done
fi
"""

_TORCHRUN = """
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a new store for each attempt
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
# Before the time limit SLURM sends USR1 to this shell only; pass it on to every rank. torchrun
# would die of it and starts with it ignored; the ranks handle it.
trap 'scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
if [ -z "$code" ]; then
  srun --kill-on-bad-exit=1 --open-mode=append --output=LOGS/%x-%j-n%n.log \\
    bash -c 'trap "" USR1; exec "$@"' - \\
    torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$ranks" \\
    --rdzv-backend=c10d --rdzv-endpoint="$host:$port" \\
    --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \\
    --log-dir="LOGS/$SLURM_JOB_ID" --tee=3 "${command[@]}" &
  step=$!
  # wait returns 138 as soon as the trap has run, before the step ends.
  while wait "$step"; code=$?; [ "$code" = 138 ]; do :; done
fi
"""

_SLURM_TAIL = """
[ ! -s "$HESSIAN_SPECTRUM_EXIT" ] || [ "$code" = 0 ] || code=$(cat "$HESSIAN_SPECTRUM_EXIT")
rm -f "$HESSIAN_SPECTRUM_EXIT"
# 75: state saved, start again. 137: killed, for example on a node that ran out of memory.
case $code in 75 | 137)
  if [ "${SLURM_RESTART_COUNT:-0}" -lt "$max_requeues" ]; then
    job=$SLURM_JOB_ID  # in an array the last task has the array's number, so name the task
    [ -z "$SLURM_ARRAY_TASK_ID" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    scontrol requeue "$job" && sleep 60
  fi
  echo "requeued $max_requeues times already; submit it again to continue" ;;
esac
exit "$code"
"""

_MPI_HEAD = "#!/bin/bash -l"

_MPI_TAIL = """
# There is no requeue without a batch system, so restart here: after 75, state saved, and after the
# codes of a job that mpirun has killed.
trap 'exit 75' INT TERM
for ((restart = 0; restart <= max_restarts; restart++)); do
  mpirun -n "$ranks" python "${command[@]}"
  code=$?
  case $code in 0 | 1 | 2) break ;; esac
done
exit "$code"
"""
