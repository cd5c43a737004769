#!/bin/bash -l

# To edit: ranks, the environment, out and command. The rest stays as it is.
ranks=16
threads=4  # per rank
max_restarts=20

source .venv/bin/activate  # or: module load python
python=python

out=density.h5
command=(-m hessian_spectrum density --problem my_problem.py:make --out "$out" --resume)

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
  mpirun -n "$ranks" env OMP_NUM_THREADS="$threads" HESSIAN_SPECTRUM_PROGRESS="$progress" \
    "$python" "${command[@]}"
  code=$?
  case $code in 0 | 1 | 2) break ;; esac
  stalled=$((stalled + 1))
  [ "$(cat "$progress" 2> /dev/null)" = "$before" ] || stalled=0
  if [ "$stalled" = 2 ]; then
    echo "two starts in a row saved nothing new (the last one ended with $code); where processes" \
      "were killed, memory may have run out"
    break
  fi
done
exit "$code"
