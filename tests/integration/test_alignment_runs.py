"""The alignment command: whole runs, resumed after a signal, on ranks, and what it refuses."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from command_line import fails, replaced
from launching import TORCHRUN, launch
from small_networks import data, mlp
from stopping import StopOnceThere
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.commands import alignment as command
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.signals import Interrupted
from hessian_spectrum.config import AlignmentConfig
from hessian_spectrum.loss.problem import Problem

ZOO = ["--model", "mlp-64-6-10", "--dataset", "digits", "--limit", "60", "--dtype", "float64"]
RUN = ["alignment", *ZOO, "--batch-size", "16", "--num-batches", "5", "--k", "0"]
SIZES = ["--batch-sizes", "4", "20", "full"]


def problem():
    torch.manual_seed(0)
    return {"model": mlp(), "loss_fn": F.cross_entropy, "data": data(30), "batch_size": 8}


def pairs_of(arguments, k=3):
    H = hs.Hessian(hs.Evaluator(**arguments))
    values, vectors = torch.linalg.eigh(H @ torch.eye(H.n, dtype=torch.float64))
    zeros = np.zeros(k)
    return hs.EigenPairs(values[-k:].numpy(), zeros, zeros == 0, vectors[:, -k:].T.numpy())


def align(out, stop=None, arguments=None, **options):
    fields = {"batch_sizes": ("3", "8", "full"), "num_batches": 6, "out": out, **options}
    config, chosen = AlignmentConfig(**fields), Problem(**(arguments or problem()))
    runner.run(command.AlignmentRun, config, chosen, hs.World(), stop)


def found_in(path):
    with hs.open(path) as run:
        assert run.finished
        return run["alignment"]


def assert_same(a, b):
    for field in dataclasses.fields(hs.Alignment):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def test_a_run_that_is_interrupted_or_extended_gives_the_bits_of_a_straight_one(tmp_path):
    stored = tmp_path / "pairs.h5"
    hs.save(stored, pairs_of(problem()))
    align(tmp_path / "straight.h5", eigenpairs=stored)
    straight = found_in(tmp_path / "straight.h5")
    ev = hs.Evaluator(**problem())
    expected = hs.alignment(ev, (3, 8, "full"), 6, pairs=pairs_of(problem()))
    np.testing.assert_allclose(straight.alignment, expected.alignment, rtol=1e-12)

    out = tmp_path / "run.h5"
    with pytest.raises(Interrupted):
        align(out, StopOnceThere(out), eigenpairs=stored)
    with hs.open(out) as run:  # the first size is there
        assert not run.finished
        assert run["alignment"].batch_sizes.tolist() == [3]
    align(out, eigenpairs=stored, resume=True)
    assert_same(found_in(out), straight)
    with hs.open(out) as run, hs.open(tmp_path / "straight.h5") as whole:
        assert run.plan == whole.plan
        # Again: the second size's products, and the one that checks the pairs.
        assert run.provenance["products"] <= whole.provenance["products"] + 8

    extended = tmp_path / "extended.h5"
    align(extended, eigenpairs=stored, batch_sizes=("8",))
    align(extended, eigenpairs=stored, batch_sizes=("3", "full"), resume=True)
    assert_same(found_in(extended), straight)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["pairs.h5", "straight.h5", "run.h5", "extended.h5"]
    )


def test_the_top_eigenpairs_are_computed_first_and_once(tmp_path, monkeypatch):
    out = tmp_path / "run.h5"
    with pytest.raises(Interrupted):
        align(out, StopOnceThere(out), k=3)  # after the eigenpairs
    with hs.open(out) as run:
        assert list(run) == ["eigenpairs", "values"] and not run.finished
        products = run.provenance["products"]
    expected = pairs_of(problem())
    monkeypatch.setattr(command.eigensolver, "eigenpairs", None)  # not again
    align(out, k=3, resume=True)
    found = found_in(out)
    np.testing.assert_allclose(found.eigenvalues, expected.values, rtol=1e-9)
    with hs.open(out) as run:
        cosines = np.abs(run["eigenpairs"].vectors @ expected.vectors.T)
        np.testing.assert_allclose(cosines, np.eye(3), atol=1e-4)
        # A block of 6, one of 6, one gradient; each checks the pairs by one more.
        assert run.provenance["products"] - products == 6 + 6 + 1 + 3
    with hs.open(out) as run:  # the same pairs: those of another run agree to their residuals only
        pairs = run["eigenpairs"]
        whole = hs.alignment(hs.Evaluator(**problem()), (3, 8, "full"), 6, pairs=pairs)
    np.testing.assert_allclose(found.captured, whole.captured, rtol=1e-6)


def test_what_a_resume_and_eigenpairs_of_something_else_are_told(tmp_path):
    out, stored, other = (tmp_path / name for name in ("run.h5", "pairs.h5", "other.h5"))
    hs.save(stored, pairs_of(problem()))
    align(out, eigenpairs=stored)
    before = out.read_bytes()
    moved = problem()
    with torch.no_grad():
        moved["model"][0].weight.mul_(1.5)
    hs.save(other, pairs_of(moved))
    digests = {"parameters": "other", "data": None}
    hs.save(
        tmp_path / "named.h5",
        pairs_of(problem()),
        provenance={"digests": digests},
        plan={"dtype": "float64"},
    )
    cases = [
        ({}, "has all of these batch sizes"),
        ({"num_batches": 7}, "--num-batches was 6 and is now 7"),
        ({"seed": 1}, "--seed was 0 and is now 1"),
        ({"arguments": moved}, "the parameters are not those of"),
        ({"batch_sizes": ("5",), "eigenpairs": None, "k": 0}, "--k was None and is now 0"),
        ({"batch_sizes": ("5",), "eigenpairs": None}, "has 3 eigenpairs, and these are others"),
        ({"batch_sizes": ("31",)}, "batch size 31: expected 1 to 30"),
        ({"batch_sizes": ("5",), "eigenpairs": other}, "and these are others"),
        ({"batch_sizes": ("5",), "eigenpairs": tmp_path / "named.h5"}, "of other parameters"),
        ({"batch_sizes": ("5",), "eigenpairs": out}, "holds alignment, values; expected eigenp"),
    ]
    for options, message in cases:
        with pytest.raises(hs.InputError, match=message):
            align(out, resume=True, **{"eigenpairs": stored, **options})
        assert out.read_bytes() == before
    with pytest.raises(hs.InputError, match="pairs are of another matrix"):
        align(tmp_path / "new.h5", eigenpairs=other)
    with pytest.raises(hs.InputError, match="exists already"):
        align(out)
    hs.save(out, pairs_of(problem()), config={"command": "density"}, overwrite=True)
    with pytest.raises(hs.InputError, match="is not what an interrupted alignment has left"):
        align(out, resume=True)
    align(out, overwrite=True, batch_sizes=("5",), k=0)
    assert np.isnan(found_in(out).captured).all()


def test_the_command_line_answers_draws_and_refuses(inside, capsys):
    assert main([*RUN, *SIZES, "--out", "run.h5"]) == 0
    said = capsys.readouterr()
    assert "11 products in 3 passes" in said.err
    assert "        60            1" in said.out and "lambda_1" not in said.out
    assert main(["plot", "run.h5"]) == 0
    assert (inside / "run.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["info", "run.h5"]) == 0
    assert "batch sizes 4, 20, 60, at most 5 minibatches" in capsys.readouterr().out
    assert main([*RUN, *SIZES, "--out", "plan.h5", "--dry-run"]) == 0
    assert "11 products" in capsys.readouterr().out and not (inside / "plan.h5").exists()
    new = [*RUN, "--out", "new.h5"]
    fails(capsys, [*new, "--batch-sizes", "1.5"], "--batch-sizes '1.5': expected 1 or more")
    fails(capsys, [*new, "--batch-sizes", "0"], "--batch-sizes '0'")
    fails(capsys, [*new, "--batch-sizes", "61"], "batch size 61: expected 1 to 60")
    fails(capsys, replaced(new, "--num-batches", "0"), "--num-batches 0: expected 1 or more")
    fails(capsys, [*new, *SIZES, "--eigenpairs", "no.h5"], "--k 0: leave it out, or --eigenp")
    named = [word for word in new if word not in ("--k", "0")]
    fails(capsys, [*named, *SIZES, "--eigenpairs", "no.h5"], "no such file")
    fails(capsys, [*named, "--k", "-1"], "--k -1: expected 0 or more")
    other = ["plot", "run.h5", "--out", "other.png", "--view", "log"]
    fails(capsys, other, "alignment has the views alignment")
    fails(capsys, ["query", "run.h5", "trace"], "holds no 'density'")
    fails(capsys, ["query", "run.h5", "trace", "--result", "alignment"], "alignment: has no quer")


def test_the_command_line_on_ranks(inside):
    program = [*RUN, *SIZES, "--out"]
    assert main([*program, "alone.h5"]) == 0
    launch([*TORCHRUN, "3", "-m", "hessian_spectrum", *program, "torchrun.h5"], inside)
    expected = found_in("alone.h5")
    with hs.open("torchrun.h5") as run:
        assert run.provenance["world_size"] == 3
        several = run["alignment"]
    np.testing.assert_allclose(several.alignment, expected.alignment, rtol=1e-9)  # 1e-14
    np.testing.assert_allclose(several.gradient_norm, expected.gradient_norm, rtol=1e-9)


# -- questions to stored eigenpairs ------------------------------------------------------------


@pytest.fixture
def stored(inside):
    """Eigenpairs of both ends and a density of the same matrix."""
    ev = hs.Evaluator(**problem())
    H = hs.Hessian(ev)
    values, vectors = torch.linalg.eigh(H @ torch.eye(H.n, dtype=torch.float64))
    ends = [0, 1, -3, -2, -1]
    pairs = hs.EigenPairs(
        values[ends].numpy(), np.full(5, 1e-9), np.ones(5, bool), vectors[:, ends].T.numpy(), 2
    )
    sizes = dict(zip(ev.layout.names, ev.layout.sizes))
    hs.save("pairs.h5", pairs, plan={"sizes": sizes})
    hs.save("density.h5", hs.spectral_density(H, 4, 8))
    return values.numpy(), vectors.numpy()


def asked(capsys, *words):
    capsys.readouterr()
    assert main(["query", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_eigenpairs_answer_by_name(stored, capsys):
    values, vectors = stored
    answer = asked(capsys, "pairs.h5", "outlier_ratio", "3")
    assert answer["value"] == pytest.approx(values[-1] / values[-3])
    low, high = answer["interval"]
    assert low < answer["value"] < high
    assert asked(capsys, "pairs.h5", "eigenvalue", "2")["value"] == values[-2]
    smallest = asked(capsys, "pairs.h5", "smallest")
    assert (smallest["value"], smallest["sign"]) == (values[0], "negative")
    damping = 1.0 - values[0]
    answer = asked(capsys, "pairs.h5", "condition_number", str(damping))
    assert answer["value"] == pytest.approx((values[-1] + damping) / (values[0] + damping))
    answer = asked(capsys, "pairs.h5", "normalized", "2")
    assert answer["value"][-1] == pytest.approx(values[-1] / values[-2])
    answer = asked(capsys, "pairs.h5", "participation")["value"]
    assert list(answer) == ["0", "2"]
    first = (vectors[:35, -1] ** 2).sum()  # 6 inputs, 5 hidden and their biases
    assert answer["0"]["each"][0] == pytest.approx(first)
    answer = asked(
        capsys, "pairs.h5", "log_determinant", str(damping), "--result", "eigenpairs",
        "--density", "density.h5",
    )  # fmt: skip
    exact = np.log(values + damping).sum()
    assert answer["interval"][0] <= exact <= answer["interval"][1]
    for words, start in (
        (("participation",), "layer  together"),
        (("normalized", "2"), "normalized(2) = "),
        (("smallest",), "smallest() = -"),
    ):
        assert main(["query", "pairs.h5", *words]) == 0
        assert capsys.readouterr().out.startswith(start)


def test_questions_that_eigenpairs_cannot_answer(stored, capsys):
    damped = ["log_determinant", "9", "--result", "eigenpairs"]
    fails(capsys, ["query", "pairs.h5", "eigenvalue", "4"], "but 3 were computed at the upper")
    fails(capsys, ["query", "pairs.h5", "eigenvalue", "1.5"], "expected the number of an eigenv")
    fails(capsys, ["query", "pairs.h5", "eigenvalue"], "eigenvalue takes 1 numbers (K), got 0")
    fails(capsys, ["query", "pairs.h5", "trace", "--result", "eigenpairs"], "no query 'trace' of")
    fails(capsys, ["query", "pairs.h5", *damped], "needs a density beside them: --density")
    fails(capsys, ["query", "density.h5", "smallest"], "holds no 'eigenpairs'")
    fails(capsys, ["query", "density.h5", "trace", "--density", "pairs.h5"], "--density is for")
    fails(capsys, ["query", "pairs.h5", "smallest", "--sigma2", "1"], "--sigma2 is for a density")
    with hs.open("pairs.h5") as run:
        pairs = run["eigenpairs"]
        hs.save("bare.h5", pairs, plan={})
        hs.save("values.h5", dataclasses.replace(pairs, vectors=None), plan=run.plan)
    fails(capsys, ["query", "bare.h5", "participation"], "there are no sizes of the parameters")
    fails(capsys, ["query", "values.h5", "participation"], "there are no eigenvectors")
    fails(
        capsys,
        ["plot", "bare.h5", "--view", "participation"],
        "does not store the parameters' sizes",
    )
    fails(capsys, ["plot", "values.h5", "--view", "participation"], "have no eigenvectors")
    assert main(["plot", "pairs.h5", "--view", "participation"]) == 0
