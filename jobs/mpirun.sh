#!/bin/bash -l
ranks=16
max_restarts=20
export OMP_NUM_THREADS=4

source .venv/bin/activate  # or: module load python

command=(-m hessian_spectrum density --problem my_problem.py:make --out density.h5 --resume)

# Without a batch system's requeue: 75 means saved, and to be started again. Of the ranks of a job
# that mpirun has killed, none says so.
trap 'exit 75' INT TERM
for ((restart = 0; restart <= max_restarts; restart++)); do
  mpirun -n "$ranks" python "${command[@]}"
  code=$?
  case $code in 0 | 1 | 2) break ;; esac
done
exit "$code"
