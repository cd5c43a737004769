"""Packaging of hessian_spectrum; the pinned, tested set of versions is in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(
    r'__version__ = "([^"]+)"', (here / "hessian_spectrum" / "_core" / "version.py").read_text()
).group(1)

setup(
    name="hessian_spectrum",
    version=version,
    description="Hessian eigenvalue densities and curvature of PyTorch models, distributed",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["hessian_spectrum", "hessian_spectrum.*"]),
    package_data={"hessian_spectrum.zoo": ["*.npz", "*.md"]},
    install_requires=[
        "torch>=2.11",  # models, derivatives, collectives
        "torchvision",  # the zoo's data sets, and torchvision:NAME models
        "numpy>=1.26",  # queries and storage without torch
        "scipy",  # tridiagonal eigenproblems, LinearOperator
        "h5py",  # the result file
        "mpi4py",  # ranks under mpirun; imported only there
        "safetensors",  # immutable shards of a run's state: no pickles, checksummed by us
        "tyro",  # dashed flags from typed dataclasses, with their comments as help
        "docstring_parser",  # the text under a field as help; tyro itself requires it
        "tqdm",  # progress bars
        "matplotlib",  # pictures; imported only when one is drawn
        "tomli; python_version < '3.11'",  # TOML configuration files before tomllib
    ],
    extras_require={
        "mpi": ["mpich"],  # an MPI library, for machines that have none
        "interactive": ["plotly"],  # surfaces as one page to be turned by mouse; 5 MB of JavaScript
        "hf": ["transformers"],  # Hugging Face models; the package itself imports none
        "test": [
            "pytest",
            "pytest-timeout",  # a hung collective fails instead of stalling the suite
            "pytest-xdist",  # two workers: most of the suite is single-threaded
            "mpich",  # the mpirun tests
            "curvlinops-for-pytorch",  # an independent oracle for Hessian products
            "plotly",  # the interactive page
            "transformers",  # a causal language model as people have it
            "vtk",  # reads the surfaces that are exported for ParaView
        ],
    },
    entry_points={"console_scripts": ["hessian-spectrum = hessian_spectrum.cli.main:main"]},
)
