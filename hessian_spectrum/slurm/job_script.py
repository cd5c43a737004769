"""Job scripts: the text is a pure function of named parameters.

All launchers treat signals, requeues and exit codes alike: SLURM signals the script's shell before
the time limit, the shell signals every rank, ranks save their state and end with exit code 75, and
the job is requeued, a limited number of times, and only while its starts save something new.
``jobs/`` holds examples of these scripts.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.submission import Resources, option_name
from hessian_spectrum.slurm.job_array import PLACEHOLDER, SHELL_NAME, check_names, of_task

# sbatch's options that ask for the same as one of ours, in another way.
INSTEAD = {
    "mem": ("mem-per-cpu", "mem-per-gpu"),
    "gpus-per-node": ("gres", "gpus", "G", "gpus-per-node", "gpus-per-task"),
}


def script(
    resources: Resources,
    command: Sequence[str],
    checkpoints: Sequence[str] = (),
    at_once: int | None = None,
) -> str:
    """The text of a job that runs ``hessian-spectrum COMMAND`` on all ranks until it is done.

    Args:
        command: the words of the command line, with ``--out``; ``--resume`` is added.
        checkpoints: paths, one task of a job array for each. In ``command``, ``{checkpoint}``
            stands for the task's path and ``{name}`` for its name without suffix.
        at_once: how many tasks of the array may run at the same time.

    Raises:
        InputError: resources that no batch system grants; a command without ``--out`` or with
            ``--overwrite``; an array without ``{name}`` in ``--out`` or without ``{checkpoint}``,
            with names that repeat or that no file should have, or by mpirun; these words without
            an array.
    """
    resources.check()
    _check_words(command, checkpoints)
    if resources.launcher == "mpirun":
        if checkpoints:
            raise InputError("a job array needs a batch system; use --launcher srun")
        head = f"#!/bin/bash -l\n\n{_TO_EDIT_MPI}\n{_settings(resources)}"
        return _joined([head, _setup(resources), _command(command), _MPI_TAIL])
    parts = [
        _head(resources, _directives(resources, len(checkpoints), at_once)),
        f"{_TO_EDIT}\n{_limits(resources)}",
        _setup(resources),
        _task(checkpoints),
        _command(command),
        _SLURM_ENVIRONMENT.replace("LOGS", shlex.quote(resources.logs)),
        _FINISHED if checkpoints else _FINISHED.replace("if ", f"if {_REQUEUED} && ", 1),
        _launch(resources),
        _SLURM_TAIL,
    ]
    return _joined(parts)


def merge_script(
    resources: Resources, command: Sequence[str], checkpoints: Sequence[str], summary: str
) -> str:
    """The text of a job that merges the finished results of an array into the file ``summary``.

    It fails where results are missing, after it has merged the others.

    Args:
        command, checkpoints: those of the array.
    """
    results = [of_task(output_of(command) or "", checkpoint) for checkpoint in checkpoints]
    listed = "\n".join(f"  {shlex.quote(result)}" for result in results)
    options = {
        "job-name": f"{resources.name}-merge",
        "nodes": 1,
        "ntasks": 1,
        "mem": resources.mem,
        "time": 60,
        "partition": resources.partition,
        "account": resources.account,
        "output": _log(resources, "%x-%j.log"),
        "open-mode": "append",
    }
    return _joined(
        [
            _head(resources, _lines(options, _without_gpus(resources.sbatch))),
            "# To edit: the lines above, the environment, summary and results.\n"
            f"summary={shlex.quote(summary)}\nresults=(\n{listed}\n)",
            _setup(resources),
            _MERGE,
        ]
    )


def output_of(command: Sequence[str]) -> str | None:
    """The value of ``--out`` among the words of a command; None without it."""
    for word, after in zip(command, [*command[1:], None]):
        if word == "--out":
            return after
        if word.startswith("--out="):
            return word.removeprefix("--out=")
    return None


def _check_words(command: Sequence[str], checkpoints: Sequence[str]) -> None:
    text, out = " ".join(command), output_of(command)
    if out is None:
        raise InputError(
            "the command has no --out, so the job could not be resumed; add --out FILE.h5"
        )
    if "--overwrite" in command:
        raise InputError("--overwrite: a requeued job would start from the beginning; leave it out")
    if not checkpoints:
        if PLACEHOLDER.search(text):
            raise InputError(
                "{name} and {checkpoint} belong to a job array; add --checkpoints FILES"
            )
        return
    if "{name}" not in out or "{checkpoint}" not in text:
        raise InputError(
            "an array needs {name} in --out and {checkpoint}: --checkpoint {checkpoint} "
            "--out 'spectra/{name}.h5'"
        )
    check_names(checkpoints)


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


# -- the head, which sbatch reads ------------------------------------------------------------------


def _head(resources: Resources, lines: Sequence[str]) -> str:
    # SLURM writes no log into a missing folder, and ends the job without a word.
    folder = [f"# Before sbatch: mkdir -p {resources.logs}"] if resources.logs != "." else []
    return "\n".join(["#!/bin/bash -l", *folder, *lines])


def _log(resources: Resources, name: str) -> str:
    return name if resources.logs == "." else f"{resources.logs}/{name}"


def _directives(resources: Resources, tasks: int, at_once: int | None) -> list[str]:
    # torchrun: one task per node, which starts the node's ranks.
    within = resources.launcher == "torchrun"
    log = "%x-%A_%a.log" if tasks else "%x-%j.log"
    throttle = f"%{at_once}" if at_once else ""
    options = {
        "job-name": resources.name,
        "nodes": resources.nodes,
        "ntasks-per-node": 1 if within else resources.ranks,
        "gpus-per-node": resources.gpus or None,
        "cpus-per-task": resources.cpus * (resources.ranks if within else 1),
        "mem": resources.mem,
        "time": resources.minutes,
        "partition": resources.partition,
        "account": resources.account,
        "array": f"0-{tasks - 1}{throttle}" if tasks else None,
        "signal": f"B:USR1@{resources.signal_seconds}",
        "output": _log(resources, log),
        "open-mode": "append",
    }
    return [*_lines(options, resources.sbatch), "#SBATCH --requeue"]


def _lines(options: dict[str, object], more: Sequence[str]) -> list[str]:
    """``#SBATCH`` lines; ``more`` are options as users write them, one line each."""
    asked = {option_name(word) for value in more for word in shlex.split(value)}
    own = [
        f"#SBATCH --{name}={value}"
        for name, value in options.items()
        if value is not None and not asked.intersection(INSTEAD.get(name, ()))
    ]
    return [*own, *(f"#SBATCH {value}" for value in more)]


def _without_gpus(more: Sequence[str]) -> list[str]:
    """These options of sbatch but for those that ask for GPUs."""
    gpus = (*INSTEAD["gpus-per-node"], "mem-per-gpu")
    kept = [[w for w in shlex.split(value) if option_name(w) not in gpus] for value in more]
    return [shlex.join(words) for words in kept if words]


# -- what users edit -------------------------------------------------------------------------------

_TO_EDIT = "# To edit: the lines above, the environment, out and command. The rest stays as it is."
_TO_EDIT_MPI = "# To edit: ranks, the environment, out and command. The rest stays as it is."


def _limits(resources: Resources) -> str:
    ranks = resources.ranks if resources.launcher == "torchrun" else 1
    # SLURM signals up to a minute earlier than it was asked to.
    earliest = resources.signal_seconds + 90
    return (
        f"ranks={ranks}  # per task\nmax_requeues={resources.requeues}\n"
        f"notice={earliest}  # seconds before the time limit; --signal comes later"
    )


def _settings(resources: Resources) -> str:
    return (
        f"ranks={resources.ranks * resources.nodes}\n"
        f"threads={resources.cpus}  # per rank\n"
        f"max_restarts={resources.requeues}"
    )


def _setup(resources: Resources) -> str:
    # The job's login shell may find another Python.
    python = resources.python or sys.executable or "python"
    lines = list(resources.setup)
    if resources.launcher == "mpirun" and not lines and "/" in python:
        lines = [f"export PATH={shlex.quote(str(Path(python).parent))}:$PATH"]  # for mpirun
    return "\n".join([*lines, f"python={shlex.quote(python)}"])


def _task(checkpoints: Sequence[str]) -> str:
    if not checkpoints:
        return ""
    listed = "\n".join(f"  {shlex.quote(path)}" for path in checkpoints)
    return (
        "# One task for each; the numbers of --array above count them from 0.\n"
        f"checkpoints=(\n{listed}\n)\n"
        f"checkpoint=${{checkpoints[$SLURM_ARRAY_TASK_ID]}}\n{SHELL_NAME}"
    )


def _command(command: Sequence[str]) -> str:
    words, out_follows = [], False
    for word in command:
        if word == "--resume":
            continue
        if out_follows:
            words.append('"$out"')
        elif word.startswith("--out="):
            words.append('--out "$out"')
        else:
            words.append(_quoted(word))
        out_follows = word == "--out"
    return (
        f"out={_quoted(output_of(command) or '')}\n"
        f"command=(-m hessian_spectrum {' '.join(words)} --resume)"
    )


def _quoted(word: str) -> str:
    """The word, quoted for the shell; {name} and {checkpoint} become shell variables."""
    parts = PLACEHOLDER.split(word)
    text = [shlex.quote(p) if i % 2 == 0 else f'"${p}"' for i, p in enumerate(parts) if p]
    return "".join(text) or "''"


# -- the rest --------------------------------------------------------------------------------------

_REQUEUED = '[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]'

_SLURM_ENVIRONMENT = """
mkdir -p -- LOGS "$(dirname -- "$out")" || exit
job=$SLURM_JOB_ID  # in an array the last task has the array's number, so name the task
[ -z "$SLURM_ARRAY_TASK_ID" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
log=$(realpath -- LOGS)/$SLURM_JOB_NAME-$job
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / ranks))
# Launchers mask the exit codes of ranks, so ranks write theirs to this file.
export HESSIAN_SPECTRUM_EXIT=$log.exit
# How far the saved state is, in words of the run's own.
export HESSIAN_SPECTRUM_PROGRESS=$log.progress
rm -f "$log.exit"
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || rm -f "$log.progress" "$log.stalled"
before=$(cat "$log.progress" 2> /dev/null)
ends=$(date -d "$(squeue -h -j "$job" -o %e 2> /dev/null)" +%s 2> /dev/null)
preempted=
was_preempted() { [ "$(date +%s)" -ge $((${ends:-0} - notice)) ] || preempted=1; }
# A requeued job keeps its number; the restart count tells its logs apart.
echo "job $job, restart ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST, $(date -Is)"
"""

# A result may be finished when an array is submitted again, or a job is requeued.
_FINISHED = """
code= killed=
if [ -e "$out" ] &&
  "$python" -m hessian_spectrum info --json "$out" | grep -q '"finished": true'; then
  echo "$out is finished already"
  code=0
fi
"""


def _launch(resources: Resources) -> str:
    text = _SRUN if resources.launcher == "srun" else _TORCHRUN
    more = [shlex.quote(word) for value in resources.srun for word in shlex.split(value)]
    return text.replace("WAIT", _WAIT.strip("\n")).replace("MORE", " ".join([*more, ""]))


_SRUN = """
# Before the time limit SLURM sends USR1 to this shell only; pass it on to every rank.
trap 'was_preempted; scancel --signal=USR1 "$job"' USR1
if [ -z "$code" ]; then
  srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    --open-mode=append --output="$log-r%t.log" MORE"$python" "${command[@]}" &
WAIT
fi
"""

_TORCHRUN = """
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a new store for each attempt
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
# Before the time limit SLURM sends USR1 to this shell only; pass it on to every rank. torchrun
# would die of it and starts with it ignored; the ranks handle it.
trap 'was_preempted; scancel --signal=USR1 "$job"' USR1
# torchrun says how a rank ended in its log only, which grows with each start.
kills() { cat "$log"-n*.log 2> /dev/null | grep -c 'exitcode *: -9 '; }
killed_before=$(kills)
if [ -z "$code" ]; then
  srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    --open-mode=append --output="$log-n%n.log" MORE\\
    bash -c 'trap "" USR1; exec "$@"' - \\
    "$python" -m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node="$ranks" \\
    --rdzv-backend=c10d --rdzv-endpoint="$host:$port" \\
    --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \\
    --log-dir="$log-ranks" --tee=3 "${command[@]}" &
WAIT
  if [ "$(kills)" != "$killed_before" ]; then
    killed=1
    [ "$code" != 1 ] || code=137  # no rank has left a code of its own
  fi
fi
"""

_WAIT = """
  step=$!
  # wait returns 138 as soon as the trap has run, before the step ends. A step may end with 138 too,
  # of a rank that does not listen yet.
  while wait "$step"; code=$?; [ "$code" = 138 ] && kill -0 "$step" 2> /dev/null; do :; done
  [ "$code" != 138 ] || { wait "$step"; code=$?; }
  [ "$code" != 137 ] || killed=1
"""

_SLURM_TAIL = """
[ ! -s "$log.exit" ] || [ "$code" = 0 ] || code=$(cat "$log.exit")
rm -f "$log.exit"
# 75: state saved, start again. 137: killed, for example on a node that ran out of memory.
# 138: signalled before it listened; the others of such a rank end with 143.
case $code in 75 | 137 | 138 | 143)
  if [ -n "$killed" ]; then
    echo "a process was killed (137); where memory ran out, raise --mem" \\
      "${SLURM_MEM_PER_NODE:+(now $SLURM_MEM_PER_NODE MB a node) }or give the command --memory"
  fi
  end=
  if [ "$(cat "$log.progress" 2> /dev/null)" != "$before" ]; then
    rm -f "$log.stalled"
  elif [ -n "$preempted" ]; then
    echo "preempted before it saved anything new"
  elif [ -e "$log.stalled" ]; then
    end="two starts in a row saved nothing new; raise --minutes where the time limit ended them"
  else
    touch "$log.stalled"
  fi
  if [ -z "$end" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$max_requeues" ]; then
    scontrol requeue "$job" && sleep 60 && exit "$code"
    end="scontrol did not requeue the job"
  fi
  echo "${end:-requeued $max_requeues times already}; submit it again to continue" ;;
esac
rm -f "$log.progress" "$log.stalled"
exit "$code"
"""

_MPI_TAIL = """
# There is no requeue without a batch system, so restart here: after 75, state saved, and after the
# codes of a job that mpirun has killed. A run says in a file how far its saved state is; two starts
# in a row that save nothing new are the end.
mkdir -p -- "$(dirname -- "$out")" || exit
progress=$(realpath -- "$out").progress
trap 'rm -f "$progress"' EXIT
trap 'exit 75' INT TERM
rm -f "$progress"
stalled=0
for ((restart = 0; restart <= max_restarts; restart++)); do
  before=$(cat "$progress" 2> /dev/null)
  # env, because not every mpirun passes this shell's variables on to other nodes.
  mpirun -n "$ranks" env OMP_NUM_THREADS="$threads" HESSIAN_SPECTRUM_PROGRESS="$progress" \\
    "$python" "${command[@]}"
  code=$?
  case $code in 0 | 1 | 2) break ;; esac
  stalled=$((stalled + 1))
  [ "$(cat "$progress" 2> /dev/null)" = "$before" ] || stalled=0
  if [ "$stalled" = 2 ]; then
    echo "two starts in a row saved nothing new (the last one ended with $code); where processes" \\
      "were killed, memory may have run out"
    break
  fi
done
exit "$code"
"""

_MERGE = """
finished=() missing=()
for result in "${results[@]}"; do
  if [ -e "$result" ] &&
    "$python" -m hessian_spectrum info --json "$result" | grep -q '"finished": true'; then
    finished+=("$result")
  else
    missing+=("$result")
  fi
done
code=0
mkdir -p -- "$(dirname -- "$summary")" || exit
if [ ${#finished[@]} != 0 ]; then
  "$python" -m hessian_spectrum merge "$summary" "${finished[@]}" || code=$?
fi
if [ ${#missing[@]} != 0 ]; then
  echo "${#missing[@]} of ${#results[@]} results are missing or not finished:"
  printf '  %s\\n' "${missing[@]}"
  code=1
fi
exit "$code"
"""
