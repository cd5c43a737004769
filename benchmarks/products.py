"""What do Hessian products cost, in full-data gradients, here and in other packages?

Measures seconds and peak memory of one Hessian product for each of k vectors, in units of one
full-data gradient by torch alone, timed in the same process in turn with the products::

    pip install --no-deps --target peers PyHessian==0.1 hessian-eigenthings==1.0.0a5
    python benchmarks/products.py --threads 2 --peers peers --out products.json
    python benchmarks/products.py --networks mlp --methods reverse-kept curvlinops --vectors 1 8
    python benchmarks/products.py --device cuda --networks resnet50 gpt2 --variants

Networks: mlp (784-20-10, tanh, 10,000 samples in minibatches of 4096), resnet20 (256 samples,
minibatches of 128, BatchNorm by running statistics), lstm (2 layers of 128, 1000 words, 64
sequences of 32, minibatches of 32), transformer (4 layers of 128, 4 heads, 256 symbols, 16
sequences of 64), and, with ``--device cuda``, resnet18 and resnet50 (224 x 224) and gpt2 (124M
parameters, 8 sequences of 512). Methods: ``methods.py``.

On a CPU each (network, method, k) runs in a process of its own. First, its products are compared
with reverse over reverse in float64 on a few samples, in uneven minibatches if those of all the
data are. Second, the memory of the first product is measured: the peak beyond the resident set
after construction (on a GPU: the allocator's peak). Third, times are medians of ``--repeats``. The
error in float64 shows whether a method is correct; in float32 a ReLU whose input is near zero may
switch, which is visible with few samples. If a method fails, its row gives the reason, and the
other methods still run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import peers
import torch
import tyro
from cases import Case, attempt
from methods import GRADIENTS, METHODS, OURS, PEERS, VARIANTS
from networks import CUDA_ONLY, NETWORKS

import hessian_spectrum as hs


@dataclass(frozen=True, kw_only=True)
class Config:
    networks: tuple[str, ...] = ()  # default: all that suit the device
    methods: tuple[str, ...] = ()  # default: gradients, ours and peers
    vectors: tuple[int, ...] = (1, 4, 8, 16)  # k: vectors multiplied at once
    repeats: int = 7
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = torch.get_num_threads()
    samples: int | None = None  # default: each network's own number
    steps: int = 90  # block products for which "planned" plans
    data_root: Path | None = None  # folder of MNIST, for mlp; default: random pixels
    peers: Path | None = None  # folder with the other packages
    limit: float = 900.0  # most seconds for one (network, method, k) on a CPU
    variants: bool = False  # add variants: channels last, bfloat16, compiled
    tf32: bool = False  # on a GPU: TF32 multiplications, 10 bits of mantissa
    out: Path | None = None  # JSON file for all measurements

    def __post_init__(self):
        for given, known in ((self.networks, NETWORKS), (self.methods, METHODS)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise SystemExit(f"unknown {', '.join(unknown)}; use some of {', '.join(known)}")
        if self.repeats < 1 or not self.vectors or min(self.vectors) < 1:
            raise SystemExit("--repeats and --vectors: expected numbers, 1 or more")

    def cases(self, network: str) -> Iterator[Case]:
        chosen = self.methods or (*GRADIENTS, *OURS, *PEERS)
        chosen += tuple(VARIANTS) if self.variants else ()
        own = {"network", "method", "vectors"}
        shared = {f.name: getattr(self, f.name) for f in fields(Case) if f.name not in own}
        for method in dict.fromkeys(chosen):
            if method == "gradient-fused" and network != "lstm":
                continue
            for k in (1,) if method in GRADIENTS else self.vectors:
                yield Case(network=network, method=method, vectors=k, **shared)


def main(config: Config) -> None:
    peers.find(config.peers)
    record = {"machine": machine(config), "config": asdict(config), "cases": []}
    print("\n".join(f"{name}: {value}" for name, value in record["machine"].items()), flush=True)
    chosen = config.networks or tuple(
        name for name in NETWORKS if config.device != "cpu" or name not in CUDA_ONLY
    )
    for network in chosen:
        rows = []
        for case in config.cases(network):
            fields = {"network": network, "method": case.method, "vectors": case.vectors}
            rows.append({**fields, **run(case, config.limit)})
            print(progress(rows[-1]), file=sys.stderr, flush=True)
            record["cases"].append(rows[-1])
            save(
                record, config.out
            )  # after each case, so that an interrupted run keeps its results
        print("\n".join(report(network, rows, config.vectors)), flush=True)


def run(case: Case, limit: float) -> dict:
    """The case's result; on a CPU from a process of its own, whose peak memory is measured."""
    if case.device != "cpu":
        return attempt(case)
    os.environ["OMP_NUM_THREADS"] = str(case.threads)  # read when torch is imported
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(case, sender))
    process.start()
    sender.close()  # so that recv() fails if the process dies
    try:
        if not receiver.poll(limit):
            return {"failed": f"took longer than {limit:.0f} s; see --limit"}
        return receiver.recv()
    except EOFError:
        process.join()
        return {"failed": f"its process ended with {process.exitcode} (-9: killed, out of memory?)"}
    finally:
        process.kill()
        process.join()


def _answer(case: Case, sender: Connection) -> None:
    sender.send(attempt(case))


def save(record: dict, out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(record, indent=1, default=str) + "\n")


def machine(config: Config) -> dict[str, str]:
    """Hardware, system and versions, on which the measurements depend."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    versions = {
        "hessian_spectrum": f"{hs.__version__} ({commit.stdout.strip() or 'no repository'})",
        "torch": torch.__version__,
        "numpy": np.__version__,
        **peers.versions(),
    }
    threads = f"{config.threads} of {len(os.sched_getaffinity(0))} cores"
    device = torch.cuda.get_device_name() if config.device != "cpu" else "none"
    return {
        "processor": f"{processor()}, {threads}; GPU: {device}, TF32 {config.tf32}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "when": time.strftime("%Y-%m-%d %H:%M %Z"),
        "dtype": config.dtype,
    }


def processor() -> str:
    """Name, family and model of the processor; a virtual machine may give no useful name."""
    try:
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return platform.processor()
    fields = {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


# -- the report ------------------------------------------------------------------------------


def report(network: str, rows: list[dict], vectors: tuple[int, ...]) -> list[str]:
    """Markdown: times and memory of each method, then notes and failures."""
    measured = [row for row in rows if "failed" not in row]
    lines = ["", f"## {network}", ""]
    if measured:
        lines += [heading(measured), ""]
        lines += [
            "Gradients per vector, median [min, max]; errors relative to reverse over reverse"
        ]
        lines += ["in float64 on a few samples.", ""]
        lines += table(measured, vectors, time_cell, errors=True)
        lines += [
            "",
            "MiB at the peak of the first product, and MiB that remain allocated after it.",
            "",
        ]
        lines += table(measured, vectors, memory_cell, errors=False)
    return [*lines, "", *remarks(rows)]


def heading(rows: list[dict]) -> str:
    first = rows[0]
    units = [seconds for row in rows for seconds in row["gradients"]]
    return (
        f"{first['n']:,} parameters, {first['samples']:,} samples ({first['data']}) in minibatches "
        f"of {first['batch_size']:,}; a gradient takes {median(units):.4f} s "
        f"[{min(units):.4f}, {max(units):.4f}]"
    )


def table(rows: list[dict], vectors: tuple[int, ...], cell, errors: bool) -> list[str]:
    columns = [f"k = {k}" for k in vectors] + (["error", "error in float64"] if errors else [])
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, found in by_method(rows).items():
        if name in GRADIENTS:  # no vectors: shown in the first column
            found = dict(zip(vectors, found.values()))
        cells = [cell(found[k]) if k in found else "" for k in vectors]
        if errors:
            cells += [worst(found, "error"), worst(found, "error64")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def by_method(rows: list[dict]) -> dict[str, dict[int, dict]]:
    """{method: {k: row}}, and our fastest mode with and without maps that are kept."""
    found: dict[str, dict[int, dict]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["vectors"]] = row
    modes = [name for name in found if name in OURS and name != "planned"]
    for kept, title in ((True, "ours, fastest kept"), (False, "ours, fastest with nothing kept")):
        names = [name for name in modes if name.endswith("-kept") == kept]
        ks = dict.fromkeys(k for name in names for k in found[name])
        best = {
            k: min((found[name][k] for name in names if k in found[name]), key=ratio) for k in ks
        }
        if len(names) > 1:
            found[title] = best
    return found


def ratio(row: dict) -> float:
    return median(row["ratios"])


def time_cell(row: dict) -> str:
    return f"{ratio(row):.2f} [{min(row['ratios']):.2f}, {max(row['ratios']):.2f}]"


def memory_cell(row: dict) -> str:
    return f"{row['peak'] / 2**20:,.0f}, {row['kept'] / 2**20:,.0f}"


def worst(found: dict[int, dict], name: str) -> str:
    errors = [row[name] for row in found.values() if row[name] is not None]
    return f"{np.max(errors):.0e}" if errors else ""  # NaN stays NaN


def remarks(rows: list[dict]) -> list[str]:
    """Notes and failures, each once with the numbers of vectors to which it applies."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if words := remark(row):
            found.setdefault((row["method"], words), []).append(str(row["vectors"]))
    return [f"- {method}, k = {', '.join(ks)}: {words}" for (method, words), ks in found.items()]


def remark(row: dict) -> str:
    """Why a case failed; otherwise its note and the time of its own gradient, if any."""
    if "failed" in row:
        return f"no result: {row['failed']}"
    own = row["own_gradients"]
    words = [row["note"], f"its own gradient takes {median(own):.2f} of the unit" if own else ""]
    return "; ".join(word for word in words if word)


def progress(row: dict) -> str:
    """One line of progress."""
    start = f"{row['network']:12s} {row['method']:32s} k = {row['vectors']:2d}"
    if "failed" in row:
        return f"{start}  failed: {row['failed']}"
    return f"{start}  {time_cell(row)}  {memory_cell(row)} MiB  error {row['error']:.0e}"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
