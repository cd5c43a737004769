"""What a tracker costs beside the training of ResNet-20, and how right its largest eigenvalue is.

Two trainings by momentum on CIFAR-10 pictures, the same steps: one with a record at ten steps that
a seed chooses, without a bound on the overhead, where lambda_max is compared with a converged one;
one with a record due every tenth step, within ``--max-overhead``. The overhead is what
``before_step`` and ``after_step`` take of the whole loop, by a clock outside of them.

    python benchmarks/tracker_cost.py --data-root cifar10.npz --out cost    # about 10 minutes
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from findings import report, within
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum import zoo


@dataclass
class Trained:
    seconds: float  # of the whole loop
    on_records: float  # seconds of it
    theta: dict[int, torch.Tensor]  # before chosen steps


def train(args: argparse.Namespace, path: Path, chosen: list[int], **options: object) -> Trained:
    data = zoo.load_dataset("arrays", data_root=args.data_root)
    x, y = data.tensors
    net = zoo.model_for(data, "resnet20", "relu", 0)
    net.train()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    evaluator = hs.Evaluator(net, loss_fn, (x[: args.probe], y[: args.probe]))
    order = torch.Generator().manual_seed(0)
    theta, on_records = {}, 0.0
    with hs.Tracker(evaluator, path, overwrite=True, **options) as tracker:
        began = time.perf_counter()
        for step in range(1, args.steps + 1):
            index = torch.randint(len(y), (args.batch,), generator=order)
            optimizer.zero_grad()
            loss = loss_fn(net(x[index]), y[index])
            loss.backward()
            if step in chosen:
                theta[step] = evaluator.theta, [b.clone() for b in net.buffers()]
            entered = time.perf_counter()
            tracker.before_step(step, optimizer)
            on_records += time.perf_counter() - entered
            optimizer.step()
            entered = time.perf_counter()
            tracker.after_step(step, loss)
            on_records += time.perf_counter() - entered
        seconds = time.perf_counter() - began
    converged = {}
    for step, (parameters, buffers) in theta.items():  # the statistics of BatchNorm, too
        for buffer, value in zip(net.buffers(), buffers):
            buffer.copy_(value)
        evaluator = hs.Evaluator(net, loss_fn, (x[: args.probe], y[: args.probe]))
        found = hs.eigenpairs(hs.Hessian(evaluator, parameters), 1, which="largest", tol=1e-4)
        converged[step] = float(found.values[-1])
    return Trained(seconds, on_records, converged)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, required=True, help="CIFAR-10 as a .npz file")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--probe", type=int, default=64, help="samples of the probe set")
    parser.add_argument("--max-overhead", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("tracker_cost"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)

    steps = np.random.default_rng(args.seed).choice(np.arange(1, args.steps + 1), 10, False)
    chosen = sorted(steps.tolist())
    exact = train(args, args.out / "chosen.h5", chosen, every=10**9, at=chosen, max_overhead=None)
    with hs.open(args.out / "chosen.h5") as run:
        track = run["track"]
    errors = [
        abs(value / exact.theta[int(step)] - 1)
        for step, value in zip(track.steps, track["lambda_max"])
    ]
    print(f"chosen steps {chosen}: products {track['products'].tolist()}")
    print("lambda_max", np.round(track["lambda_max"], 3).tolist())
    print("relative errors", np.array(errors))
    bounded = train(args, args.out / "bounded.h5", [], every=10, max_overhead=args.max_overhead)
    with hs.open(args.out / "bounded.h5") as run:
        found = run["track"]
    print(
        f"records at {found.steps.tolist()}, skipped {len(found.skipped)}; seconds a record "
        f"{found['seconds'].mean():.2f}, a step {bounded.seconds / args.steps:.3f}"
    )
    source = "hs.Tracker"
    report(
        [
            within("largest relative error of lambda_max", source, max(errors), 0.0, 0.01),
            within(
                "products a record, mean",
                source,
                track["products"].mean(),
                1,
                50,
                track["products"].std(ddof=1),
            ),
            within(
                f"share of the time, at max_overhead={args.max_overhead:g}",
                source,
                bounded.on_records / bounded.seconds,
                0.0,
                args.max_overhead + found["seconds"].max() / bounded.seconds,
            ),
        ],
        args.out / "findings.json",
        args,
    )


if __name__ == "__main__":
    main()
