"""A picture in the loss surface of a small network: a plane of parameters whose losses draw it.

Skorokhodov & Burtsev (2019, arXiv:1910.03867) find planes on which the loss of a network looks like
any given picture; Czarnecki et al. (2020, arXiv:1912.07559) prove that large networks have such
sections, and find that they look alike on test data. ``hs.fit_section`` trains the origin and two
directions of a plane for the correlation with a grey picture, here of a bat and of a cow's head,
16 x 16 pixels. The network is an MLP with ReLU on pictures of digits; the correlation is that over
the grid, on the training data and on as many other digits. The first, random plane is beside it,
and a smaller network.

    python benchmarks/pattern_in_surface.py --data-root DATA --out pattern    # DATA: MNIST's folder
    python benchmarks/pattern_in_surface.py --quick --out pattern            # shipped digits
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from findings import report, within
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

import hessian_spectrum as hs
from hessian_spectrum.analyses.fit_section import FittedSection

SIDE = 7  # of the pictures of digits
BAT = """
................
................
................
.......#..#.....
.......####.....
..#....####...#.
.##...######..##
####.############
################
################
################
##.##.######.###
#..#...####...##
........##....#.
................
................
"""
COW = """
................
.#............#.
.##..........##.
..###......###..
...##########...
####.######.####
.####.####.####.
...##########...
...#..####..#...
...#..####..#...
...##########...
....########....
....#......#....
....#.#..#.#....
....#......#....
.....######.....
"""


def glyph(text: str) -> np.ndarray:
    """(16, 16), 1 where there is ink, slightly blurred: a loss is continuous."""
    ink = np.array([[c == "#" for c in line[:16]] for line in text.split()], dtype=float)
    for axis in (0, 1):
        ink = 0.5 * ink + 0.25 * (np.roll(ink, 1, axis) + np.roll(ink, -1, axis))
    return ink


def evaluators(args: argparse.Namespace, hidden: int) -> tuple[hs.Evaluator, hs.Evaluator]:
    """The network on training digits, and on as many others."""
    name = "digits" if args.quick else "mnist"
    x, y = hs.zoo.load_dataset(name, data_root=args.data_root, limit=2 * args.samples).tensors
    x = adaptive_avg_pool2d(x, SIDE).flatten(1)
    x = (x - x.mean(0)) / x.std()
    torch.manual_seed(args.seed)
    net = nn.Sequential(nn.Linear(SIDE**2, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    halves = (slice(args.samples), slice(args.samples, None))
    one, two = (hs.Evaluator(net, nn.CrossEntropyLoss(), (x[half], y[half])) for half in halves)
    return one, two


def figure(fits: dict[str, FittedSection]) -> Figure:
    picture = Figure(figsize=(9, 3 * len(fits)), layout="constrained")
    for row, (name, fit) in zip(picture.subplots(len(fits), 3, squeeze=False), fits.items()):
        titles = (
            name,
            f"loss: correlation {fit.correlation:.3f}",
            f"other data: {fit.test_correlation:.3f}",
        )
        for axes, key, title in zip(row, ("picture", "loss", "test_loss"), titles):
            axes.imshow(fit.surface.values[key], cmap="gray_r")
            axes.set_title(title, fontsize=9)
            axes.axis("off")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="MNIST's folder")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--small", type=int, default=4, help="hidden units of the smaller network")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("pattern"))
    args = parser.parse_args()
    if args.data_root is None and not args.quick:
        parser.error("--data-root is missing: MNIST's folder, or use --quick")
    if args.quick:
        args.samples, args.hidden, args.steps = 32, 16, 20
    args.out.mkdir(exist_ok=True)
    begin, fits, found = time.perf_counter(), {}, []
    tasks = [("bat", args.hidden), ("cow", args.hidden), ("bat", args.small)]
    for name, hidden in tasks:
        ev, test = evaluators(args, hidden)
        picture = glyph(BAT if name == "bat" else COW)
        fit = hs.fit_section(
            ev, picture, test=test, num_steps=args.steps, lr=args.lr, seed=args.seed
        )
        label = f"{name}, {hidden} hidden units"
        fits[label] = fit
        hs.save(args.out / f"{name}-{hidden}.h5", fit.surface)
        seconds = time.perf_counter() - begin
        print(
            f"{label}, {ev.n} parameters: {fit}; first plane {fit.history[0]:.3f}; {seconds:.0f} s",
            flush=True,
        )
        assert fit.test_correlation is not None  # there is other data
        if hidden == args.hidden:
            for which, value, source, least in (
                ("training", fit.correlation, "Skorokhodov & Burtsev 2019", 0.9),
                ("other", fit.test_correlation, "Czarnecki et al. 2020", 0.8),
            ):
                claim = f"{label}: correlation of picture and loss, {which} data"
                found.append(within(claim, source, value, least, 1.0, judged=not args.quick))
    small, large = (fits[f"bat, {hidden} hidden units"] for hidden in (args.small, args.hidden))
    found.append(
        within(
            "bat: correlation of the larger network minus that of the smaller",
            "Czarnecki et al. 2020",
            large.correlation - small.correlation,
            0.0,
            2.0,
            judged=not args.quick,
        )
    )
    report(found, args.out / "findings.json", args)
    figure(fits).savefig(args.out / "pattern.png", dpi=110)


if __name__ == "__main__":
    main()
