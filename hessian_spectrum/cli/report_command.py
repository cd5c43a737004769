"""The command that writes a page about result files. One process, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from hessian_spectrum._core.errors import InputError


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about result files: what was found and what to beware of, figures,
    tables, the commands that compute it again, provenance.

    The page needs no network and no script; it prints, and reads on a phone. Several runs are
    compared first. A file with a surface or a map makes it 5 MB, for the surface to be turned
    (pip install 'hessian_spectrum[interactive]').

        hessian-spectrum report run.h5 --out report.html
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Result files, or folders whose .h5 files are taken."""
    out: Path
    """The page to write; its name ends in .html."""
    overwrite: bool = False
    """Replace an existing page."""


def report(config: ReportConfig) -> None:
    from hessian_spectrum.reporting import page
    from hessian_spectrum.reporting.numbers import bytes_of, counted
    from hessian_spectrum.storage import run_file

    if config.out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{config.out}: expected a name that ends in .html")
    run_file.check_output(config.out, overwrite=config.overwrite)
    count = page.write(config.files, config.out)
    size = bytes_of(config.out.stat().st_size)
    print(f"written to {config.out}: {counted(count, 'run')}, {size}")
