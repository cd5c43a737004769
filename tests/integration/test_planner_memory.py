"""The memory that plans measure, in this process and in a fresh one."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.planning import plan_choice, product_planner

GIB = 2**30


@pytest.fixture
def always(monkeypatch, tmp_path):
    """Calibrate however short the run, and whatever was measured before."""
    monkeypatch.setattr(plan_choice, "RUN_OVER_CALIBRATION", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make_plan(ev, probes=4, steps=10, **options):
    return product_planner.plan(ev, ev.theta, probes, steps, **options)


def test_the_plan_stays_within_its_memory_by_cutting_minibatches(always):
    model = nn.Sequential(nn.Linear(64, 2048), nn.Tanh(), nn.Linear(2048, 10))
    x, y = torch.rand(4096, 64), torch.randint(0, 10, (4096,))
    ev = hs.Evaluator(model, F.cross_entropy, (x, y), batch_size=4096)
    plans = {size: make_plan(ev, 2, 5, memory=size, mode="reverse") for size in (4 * GIB, GIB // 4)}
    for size, estimate in plans.items():
        assert estimate.basis + estimate.working <= size
        assert estimate.basis == 2 * 6 * ev.n * 4
    assert plans[4 * GIB].plan.batch_size is None
    assert plans[GIB // 4].plan.batch_size < 2048  # the graph of all takes 300 MiB
    small = hs.Hessian(ev, plan=plans[GIB // 4].plan)
    v = torch.randn(ev.n)
    torch.testing.assert_close(small @ v, hs.Hessian(ev) @ v, rtol=1e-3, atol=1e-6)


def test_what_a_process_imports_at_its_first_product_is_not_taken_for_memory_of_samples():
    code = """
import torch, hessian_spectrum as hs
from torch import nn
from hessian_spectrum.planning import calibration
model = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 10))
ev = hs.Evaluator(model, nn.CrossEntropyLoss(), (torch.rand(4096, 8), torch.arange(4096) % 10))
print(*(calibration.bytes_of_a_sample(ev, ev.theta, None, 4096, 4 << 30) for _ in range(2)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, again = map(float, done.stdout.split())
    assert first < 3 * again
