#!/bin/bash -l
ranks=16
max_restarts=20
export OMP_NUM_THREADS=4

source .venv/bin/activate  # or: module load python

command=(-m hessian_spectrum density --problem my_problem.py:make --out density.h5 --resume)

# There is no requeue without a batch system, so restart here: after 75, state saved, and after the
# codes of a job that mpirun has killed.
trap 'exit 75' INT TERM
for ((restart = 0; restart <= max_restarts; restart++)); do
  mpirun -n "$ranks" python "${command[@]}"
  code=$?
  case $code in 0 | 1 | 2) break ;; esac
done
exit "$code"
