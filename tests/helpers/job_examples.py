"""The jobs of the folder jobs/, and the scripts that submit writes for them.

After a change of the scripts: ``python tests/helpers/job_examples.py`` writes jobs/ anew.
"""

import contextlib
import io
import shlex
from pathlib import Path

from locations import ROOT

from hessian_spectrum.cli.main import main

# Logs in the current folder: SLURM writes none into a folder that a user has yet to make.
SETUP = "--logs . --python python --setup 'source .venv/bin/activate  # or: module load python'"

DENSITY = "density --problem my_problem.py:make --out density.h5"

SEVERAL = "density --problem my_problem.py:make --checkpoint {checkpoint} --out 'spectra/{name}.h5'"

CHECKPOINTS = " ".join(f"nets/epoch-{epoch:04}.pt" for epoch in range(5, 45, 5))

JOBS = {
    "one_gpu.sbatch": f"--gpus 1 --cpus 8 --mem 32G --minutes 240 {SETUP} -- {DENSITY}",
    "one_node.sbatch": f"--ranks 4 --gpus 4 --cpus 8 --mem 128G --minutes 240 {SETUP} -- {DENSITY}",
    "nodes_srun.sbatch": "--nodes 4 --ranks 4 --gpus 4 --cpus 8 --mem 128G --minutes 240 "
    f"{SETUP} -- {DENSITY}",
    "nodes_torchrun.sbatch": "--launcher torchrun --nodes 4 --ranks 4 --gpus 4 --cpus 8 "
    f"--mem 128G --minutes 240 {SETUP} -- {DENSITY}",
    "array.sbatch": f"--gpus 1 --cpus 8 --mem 32G --minutes 240 {SETUP} "
    f"--checkpoints {CHECKPOINTS} --summary summary.h5 -- {SEVERAL}",
    "mpirun.sh": f"--launcher mpirun --ranks 16 --cpus 4 {SETUP} -- {DENSITY}",
}


def scripts_of(words):
    """The scripts that ``submit --dry-run`` prints: of the job, and of the merge after an array."""
    first, *rest = printed_for(words).split("\n\n\n#!")
    return [f"{first}\n", *(f"#!{text}" for text in rest)] if rest else [first]


def script_of(words):
    """The job's script."""
    return scripts_of(words)[0]


def printed_for(words):
    words = shlex.split(words)
    cut = words.index("--")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["submit", "--dry-run", *words[:cut], *words[cut:]]) == 0
    return printed.getvalue()


if __name__ == "__main__":
    for name, words in JOBS.items():
        Path(ROOT, "jobs", name).write_text(script_of(words))
    Path(ROOT, "jobs", "merge.sbatch").write_text(scripts_of(JOBS["array.sbatch"])[1])
