"""The benchmarks of classical results on small networks run, and say what they find."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from locations import ROOT
from small_data_success import hidden, outputs, starts
from torch import nn

import hessian_spectrum as hs
from benchmarks.studies.spurious_minima import descend, minima
from hessian_spectrum.zoo.student_teacher import expected_loss


def run(script, out, *options):
    words = [sys.executable, str(ROOT / "benchmarks" / script), *options, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "findings.json").read_text())["findings"], done.stdout


@pytest.mark.slow
def test_a_quick_count_of_successes_takes_other_points_too(tmp_path):
    x = np.array([[0.0], [1.0], [2.0], [3.0]])
    np.savez(tmp_path / "line.npz", x=x, y=np.array([0, 0, 1, 1]))
    findings, said = run(
        "small_data_success.py", tmp_path / "out", "--quick", "--points", tmp_path / "line.npz"
    )
    assert len(findings) == 4 and said.count(" hidden: ") == 4
    rows = json.loads((tmp_path / "out" / "success.json").read_text())
    assert all(one["right"] == one["runs"] for one in rows if one["activation"] == "sigmoid")


def test_descents_end_at_the_minimum_of_seven_units_or_at_the_teacher():
    # The ninth start of seed 0 is one that ends in the minimum.
    normal = np.random.default_rng(0).standard_normal((12, 7, 7))[6:10]
    ends, has_ended, _ = descend(torch.from_numpy(normal / 7**0.5), 0.5, 10_000)
    assert has_ended.all()
    losses = expected_loss(ends, torch.eye(7, dtype=torch.float64))
    assert (losses > 1e-6).tolist() == [False, False, True, False]
    ((point, count, _),) = minima(7, ends[2:3], losses[2:3])
    assert (count, point.kind) == (1, "minimum")
    assert point.loss == pytest.approx(0.0232027149, abs=5e-11)


@pytest.mark.parametrize("activation, module", [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid)])
def test_the_batch_of_networks_is_the_networks(activation, module):
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).double()
    parameters = [p.detach() for p in starts(5, 2, 6, 0)]
    with torch.no_grad():
        parameters[1] -= 0.4
    found = outputs(parameters, x, activation)
    alive = (hidden(parameters, x, activation) > 0).any(1).sum(1)
    for i, (w, b, v, c) in enumerate(zip(*parameters)):
        model = nn.Sequential(nn.Linear(2, 6), module(), nn.Linear(6, 1)).double()
        for own, given in zip(model.parameters(), (w, b, v[None], c[None])):
            own.data = given.clone()
        assert torch.allclose(model(x)[:, 0], found[i], rtol=0, atol=1e-15)
        ev = hs.Evaluator(model, nn.MSELoss(), (x, x[:, :1]))
        assert hs.dead_units(ev).count == (6 - alive[i] if activation == "relu" else 0)
