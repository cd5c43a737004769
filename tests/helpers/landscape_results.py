"""One result of each landscape analysis, of a small network."""

import torch
from hand import spiral
from image_networks import evaluator

import hessian_spectrum as hs
from hessian_spectrum.landscape import directions


def results_of_all_analyses():
    """By their names in a run file."""
    torch.manual_seed(0)
    ev = evaluator()
    rows = spiral(count=5, n=ev.n)
    return {
        "curve": hs.interpolate(ev, ev.theta, 2 * ev.theta, 5),
        "surface": hs.surface(ev, directions.random(ev), (3, 4)),
        "directions": directions.gradient(ev).joined(directions.random(ev)).stored(True),
        "trajectory": hs.along_trajectory(ev, rows),
        "barriers": hs.barriers(ev, rows, 4, steps=[0, 1, 2, 7, 8], epochs=[0, 0, 1, 4, 4]),
        "critical": hs.CriticalPoints.of([hs.classify(ev)]),
        "functional": hs.functional_distances(ev, {"a": ev.theta, "b": 2 * ev.theta}),
        "asymmetry": hs.asymmetry(ev, rows[:2], [0.1, 0.2]),
        "averaging": hs.averaging_bias(ev, rows, rows[-1], rows[:1]),
    }
