"""A tracker in Lightning and in Hugging Face's Trainer: interrupted, resumed, the same file."""

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import hessian_spectrum as hs

COMMON = """
import os, signal, sys
import torch
from torch import nn
import hessian_spectrum as hs
from hessian_spectrum.zoo.torchvision_compat import import_torchvision

import_torchvision()  # both packages import it; its operators may be built for another torch
torch.manual_seed(0)
torch.set_num_threads(1)
x = torch.randn(64, 4)
y = (x[:, :3] + 0.5 * x[:, 1:]).argmax(1)
net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
options = dict(every=5, at=(1,), max_overhead=None, tol=1e-6)
path, kill_at, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resume"

def killed(found, step):
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
"""

LIGHTNING = (
    COMMON
    + """
import logging, warnings
import lightning.pytorch as L
from hessian_spectrum.tracking.lightning import TrackerCallback
warnings.simplefilter("ignore"); logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

class Module(L.LightningModule):
    def __init__(self):
        super().__init__(); self.net = net
    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)

def evaluator(module):
    return hs.Evaluator(module.net, nn.CrossEntropyLoss(), (x[:40], y[:40]))

# Checkpoints at the ends of epochs: within one Lightning starts its data again.
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
saving = L.callbacks.ModelCheckpoint(dirpath="ckpt", save_last=True, every_n_train_steps=8)
trainer = L.Trainer(
    max_epochs=3, accelerator="cpu", devices=1, accumulate_grad_batches=1, logger=False,
    enable_progress_bar=False, enable_model_summary=False,
    callbacks=[TrackerCallback(evaluator, path, log=killed, **options), saving])
trainer.fit(Module(), data, ckpt_path="ckpt/last.ckpt" if resume else None)
"""
)

HUGGING_FACE = (
    COMMON
    + """
from transformers import Trainer, TrainingArguments
from hessian_spectrum.tracking.huggingface import HuggingFaceTracker

class Model(nn.Module):
    def __init__(self):
        super().__init__(); self.net = net
    def forward(self, x, labels):
        z = self.net(x)
        return {"loss": nn.functional.cross_entropy(z, labels), "logits": z}

class Data(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, i): return {"x": x[i], "labels": y[i]}

def evaluator(model):
    return hs.Evaluator(model.net, nn.CrossEntropyLoss(), (x[:40], y[:40]))

arguments = TrainingArguments(
    "out", max_steps=24, per_device_train_batch_size=4, gradient_accumulation_steps=2, save_steps=4,
    report_to=[], disable_tqdm=True, use_cpu=True, learning_rate=0.02, seed=0, logging_steps=1000)
trainer = Trainer(Model(), arguments, train_dataset=Data(),
    callbacks=[HuggingFaceTracker(evaluator, path, log=killed, **options)])
trainer.train(resume_from_checkpoint=resume)
"""
)


def run(script, folder, *arguments):
    (folder / "train.py").write_text(textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, "train.py", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "package, script", [("lightning", LIGHTNING), ("accelerate", HUGGING_FACE)]
)
def test_killed_and_resumed_it_gives_the_file_of_one_run(tmp_path, package, script):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    whole = run(script, tmp_path, "whole.h5", 0, "new")
    assert whole.returncode == 0, whole.stderr
    for folder in ("ckpt", "out"):
        if (tmp_path / folder).exists():
            (tmp_path / folder).rename(tmp_path / f"{folder}-whole")
    assert run(script, tmp_path, "run.h5", 15, "new").returncode == -signal.SIGKILL
    with hs.open(tmp_path / "run.h5") as found:
        assert found["track"].steps.tolist() == [1, 5, 10, 15] and not found.finished
    again = run(script, tmp_path, "run.h5", 0, "resume")
    assert again.returncode == 0, again.stderr
    with hs.open(tmp_path / "whole.h5") as a, hs.open(tmp_path / "run.h5") as b:
        assert b.finished and a["track"].steps.tolist() == b["track"].steps.tolist()
        assert b["track"].steps.tolist() == [1, 5, 10, 15, 20]
        for name in set(a["track"].values) - {"seconds"}:
            np.testing.assert_array_equal(a["track"][name], b["track"][name], err_msg=name)
