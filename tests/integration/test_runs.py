"""A whole run in Python: what a resume refuses, what a lost lock and a signal stop."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from density_runs import StopAfterOneSave, contents, problem
from small_networks import N, data
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum._core.errors import StateLost
from hessian_spectrum.commands import computation, output
from hessian_spectrum.commands.density import Density
from hessian_spectrum.commands.header import ProblemSize, RunHeader, Work
from hessian_spectrum.commands.runner import run
from hessian_spectrum.commands.signals import STOP_SIGNALS, Interrupted, StopRequest
from hessian_spectrum.config import DensityConfig
from hessian_spectrum.loss import loaders
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.storage.writer_lock import LockLost

STEPS = 12


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run.h5"


def config(out, **options):
    # Minutes of 0: the state is saved after each step.
    fields = {"num_probes": 2, "num_steps": STEPS, "checkpoint_minutes": 0.0, "hvp": "reverse"}
    return DensityConfig(out=out, **{**fields, **options})


def density(out, arguments, stop=None, **options):
    run(Density, config(out, **options), Problem(**arguments), hs.World(), stop)


def interrupted(out, arguments, **options):
    with pytest.raises(Interrupted):
        density(out, arguments, StopAfterOneSave(out), **options)
    assert contents(out)


def spoil(out, text):
    """Both manifests: the run would go back to an intact earlier one."""
    for name in ("manifest.json", "manifest.previous.json"):
        (out.with_name("run.h5.d") / name).write_text(text)


def refused(out, arguments, message, **options):
    before = contents(out)
    with pytest.raises(hs.InputError, match=message) as error:
        density(out, arguments, resume=True, **options)
    assert "\n" not in str(error.value)
    assert contents(out) == before


def nodes(out):
    with hs.open(out) as run:
        assert run.finished
        return run["density"].nodes


@pytest.fixture
def straight(tmp_path):
    (tmp_path / "straight").mkdir()
    density(tmp_path / "straight" / "run.h5", problem())
    return nodes(tmp_path / "straight" / "run.h5")


# -- resume --------------------------------------------------------------------------------------


def steeper(outputs, y):
    return 1.001 * F.cross_entropy(outputs, y)


def test_resume_with_another_loss_of_the_same_data_and_parameters_is_refused(out):
    interrupted(out, problem())
    refused(out, problem(steeper), "cannot resume: the loss was .* and is now")


def test_resume_with_another_gradient_at_the_same_loss_is_refused(out):
    given = problem()
    at = given["model"](given["data"][0]).mean().item()

    def turned(outputs, y):
        return F.cross_entropy(outputs, y) + outputs.mean() - at  # the same at these parameters

    interrupted(out, given)
    refused(out, problem(turned), "cannot resume: the gradient norm was .* and is now")


def test_resume_with_another_weighting_of_the_same_samples_is_refused(out):
    interrupted(out, problem())
    twice = problem(count=lambda batch: 2 * len(batch[0]))  # the same mean, from the same samples
    refused(out, twice, rf"cannot resume: total weight was {N}\.0 and is now {2 * N}\.0")


def test_resume_in_another_precision_is_refused(out):
    interrupted(out, problem())
    refused(out, problem(dtype=torch.float32), "cannot resume")
    with pytest.raises(hs.InputError, match=r"dtype was torch\.float64 and is now torch\.float32"):
        now = header("torch.float32")
        header("torch.float64").require_same_run(now, {}, Density.free_fields)


def header(dtype):
    digests = {"parameters": "a", "data": "b"}
    return RunHeader({}, digests, ProblemSize(9, 4.0, dtype), {}, {}, Work())


@pytest.mark.parametrize("kept_first", [True, False])
def test_data_without_a_digest_does_not_hinder_a_resume(out, straight, monkeypatch, kept_first):
    def room(kept):
        monkeypatch.setattr(loaders, "KEEP_SHARE", 0.25 if kept else 0.0)

    room(kept_first)
    interrupted(out, problem())
    assert (json.loads(contents(out)["manifest.json"])["digests"]["data"] is None) != kept_first
    room(not kept_first)
    density(out, problem(), resume=True)
    assert np.array_equal(nodes(out), straight)


def test_resume_with_other_data_is_refused(out):
    interrupted(out, problem())
    x, y = data()
    refused(out, problem(data=(x, y.roll(1))), "the data are not those of the interrupted run")


def test_memory_may_differ_and_the_plan_may_be_asked_for_before_a_resume(out, straight, capsys):
    interrupted(out, problem(), memory="1GiB")
    before = contents(out)
    density(out, problem(), resume=True, dry_run=True)
    assert " products in " in capsys.readouterr().out
    assert contents(out) == before
    density(out, problem(), resume=True, memory="2GiB")
    assert np.array_equal(nodes(out), straight)


def test_a_resumed_run_forms_its_products_as_the_interrupted_one_did(out, monkeypatch):
    chosen = hs.ProductPlan("reverse-batched", chunk=1, batch_size=3, keep=True)
    estimate = Density.estimate
    monkeypatch.setattr(
        Density, "estimate", lambda *given: dataclasses.replace(estimate(*given), plan=chosen)
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        interrupted(out, problem())
        torch.set_num_threads(before)
        monkeypatch.setattr(Density, "estimate", None)  # nothing is measured again
        used, set_num_threads = [], torch.set_num_threads
        with monkeypatch.context() as patch:
            patch.setattr(torch, "set_num_threads", lambda n: (used.append(n), set_num_threads(n)))
            density(out, problem(), resume=True)
        # Sums are taken in the same order; afterwards the caller has his own number again.
        assert used == [before + 1, before]
    finally:
        torch.set_num_threads(before)
    with hs.open(out) as run:
        assert run.plan["products"] == dataclasses.asdict(chosen)
        assert run.plan["threads"] == before + 1


def test_resume_of_a_manifest_that_tells_nothing_is_refused(out):
    interrupted(out, problem())
    spoil(out, "{}")
    refused(out, problem(), "the manifest is damaged: .* missing")


# -- what is there already -----------------------------------------------------------------------


def test_the_state_of_an_interrupted_run_is_not_deleted_by_a_plain_start(out):
    interrupted(out, problem())
    out.unlink()  # the folder alone is enough
    before = contents(out)
    assert before
    with pytest.raises(hs.InputError, match="exists already, the state of an earlier run"):
        density(out, problem())
    assert contents(out) == before
    # Nor by one that finds it only when it has the lock.
    with pytest.raises(hs.InputError, match="exists already, the state of an earlier run"):
        output.check_output(config(out))


def test_a_state_that_appears_while_the_problem_is_set_up_is_not_deleted(out):
    folder = out.with_name("run.h5.d")

    def loss_fn(outputs, y):
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text("theirs")
        return F.cross_entropy(outputs, y)

    with pytest.raises(hs.InputError, match="exists already, the state of an earlier run"):
        density(out, problem(loss_fn))
    assert contents(out) == {"manifest.json": b"theirs"}


def test_overwrite_starts_clean_and_leaves_what_is_not_of_the_run(out, straight):
    interrupted(out, problem(steeper))
    notes = out.with_name("run.h5.d") / "notes.txt"
    notes.write_text("mine")
    density(out, problem(), overwrite=True, keep_state="never")
    assert np.array_equal(nodes(out), straight)
    assert contents(out).keys() == {"run.h5", "notes.txt"}


def test_overwrite_forgets_the_state_that_was_there_before_the_first_step(out):
    interrupted(out, problem(steeper))
    old = set(contents(out)) - {"run.h5", "manifest.json"}
    with pytest.raises(Interrupted):
        density(out, problem(), StopAfterOneSave(out), overwrite=True)
    assert len(old) == 3  # two shards and the manifest before the last
    assert not {name for name in old if name.startswith("basis")} & set(contents(out))


# -- the lock ------------------------------------------------------------------------------------


def remove(lock):
    lock.unlink()


def take_over(lock):
    lock.write_text(json.dumps({"token": "theirs", "host": "elsewhere", "pid": 1}))


@pytest.mark.parametrize("lose", [remove, take_over])
def test_a_run_that_lost_its_lock_overwrites_nothing(out, lose):
    lock, found = out.with_name("run.h5.lock"), []

    def then():
        if not found:
            assert lock.exists()
            lose(lock)
            found.append(contents(out))
        return None

    with pytest.raises(LockLost, match="was taken over or removed"):
        density(out, problem(), StopAfterOneSave(out, then))
    assert contents(out) == found[0]
    assert lock.exists() == (lose is take_over)  # nor is the other's lock removed


def test_a_run_that_lost_its_lock_before_the_end_writes_no_result(out):
    lock, calls = out.with_name("run.h5.lock"), []

    def loss_fn(outputs, y):
        if lock.exists() and not calls:
            calls.append(take_over(lock))
            out.write_bytes(b"theirs")
        return F.cross_entropy(outputs, y)

    with pytest.raises(LockLost):
        density(out, problem(loss_fn), checkpoint_minutes=60.0)
    assert calls and contents(out) == {"run.h5": b"theirs"}


# -- signals -------------------------------------------------------------------------------------


def handlers():
    return [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_at_once_outside_a_computation_and_is_noted_inside(number):
    before, name = handlers(), signal.Signals(number).name
    stop = StopRequest()
    with stop.listening():
        with pytest.raises(Interrupted, match=name) as stopped:
            os.kill(os.getpid(), number)
        assert not stopped.value.agreed
    assert handlers() == before

    stop = StopRequest()
    with pytest.raises(Interrupted), stop.listening():
        with stop.deferred():
            assert stop.name is None
            os.kill(os.getpid(), number)
            assert stop.name == name
        os.kill(os.getpid(), number)  # there is nothing to save any more
    assert handlers() == before


def test_a_failure_inside_restores_the_handlers_and_ends_the_delay():
    before, stop = handlers(), StopRequest()
    with pytest.raises(ZeroDivisionError), stop.listening(), stop.deferred():
        raise ZeroDivisionError
    assert handlers() == before
    with pytest.raises(Interrupted), stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert handlers() == before


def test_a_signal_before_the_first_step_ends_the_run_without_a_trace(out, capsys):
    def loss_fn(outputs, y):
        if out.with_name("run.h5.lock").exists():  # inside, where signals are only noted
            os.kill(os.getpid(), signal.SIGTERM)
        return F.cross_entropy(outputs, y)

    before = handlers()
    with pytest.raises(Interrupted, match="SIGTERM") as stopped:
        density(out, problem(loss_fn))
    assert stopped.value.agreed
    assert handlers() == before
    assert list(out.parent.iterdir()) == []
    assert " products in " not in capsys.readouterr().err  # nothing was planned any more


def test_a_signal_while_products_are_prepared_ends_the_run_before_the_first_step(out, monkeypatch):
    def prepared(*given, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return hs.Hessian(*given, **options)

    monkeypatch.setitem(computation.OPERATORS, "hessian", prepared)
    with pytest.raises(Interrupted, match="SIGTERM"):
        density(out, problem())
    assert list(out.parent.iterdir()) == []


def test_a_signal_during_the_last_step_finds_the_run_finished(out, straight):
    def then():
        saved = json.loads(stop.state.read_text())
        return "SIGTERM" if saved["num_steps"] == STEPS - 1 else None

    stop = StopAfterOneSave(out, then)
    density(out, problem(), stop, keep_state="never")
    assert not stop.state.parent.exists()
    assert np.array_equal(nodes(out), straight)


def test_a_signal_while_the_problem_is_set_up_ends_the_run_at_once(out):
    calls = []

    def loss_fn(outputs, y):
        calls.append(0)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return F.cross_entropy(outputs, y)

    with pytest.raises(Interrupted, match="SIGTERM") as stopped:
        density(out, problem(loss_fn))
    assert len(calls) == 2
    assert not stopped.value.agreed
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("call", range(1, 8))
def test_a_signal_at_any_evaluation_of_the_setup_is_no_fault_of_the_input(out, call):
    calls = []

    def loss_fn(outputs, y):
        calls.append(0)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return F.cross_entropy(outputs, y)

    with pytest.raises(Interrupted, match="SIGTERM"):
        density(out, problem(loss_fn))
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("part", ["config", "digests", "problem", "values", "plan", "work"])
def test_a_manifest_without_one_of_its_parts_is_refused(out, part):
    interrupted(out, problem())
    manifest = out.with_name("run.h5.d") / "manifest.json"
    whole = json.loads(manifest.read_text())
    del whole[part]
    spoil(out, json.dumps(whole))
    refused(out, problem(), f"the manifest is damaged: .*{part}")


@pytest.mark.parametrize("text", ["null", "3", '"x"'])
def test_a_manifest_that_is_no_dict_is_refused(out, text):
    interrupted(out, problem())
    spoil(out, text)
    refused(out, problem(), "the manifest is damaged")


# -- estimators, and runs that are extended --------------------------------------------------------


def measure_of(out):
    with hs.open(out) as run:
        assert run.finished
        return run["density"], run.plan


def same(a, b):
    assert np.array_equal(a.nodes, b.nodes) and np.array_equal(a.weights, b.weights)
    assert np.array_equal(a.residuals, b.residuals)
    for mine, other in zip(a.rules, b.rules):
        assert np.array_equal(mine.t, other.t) and np.array_equal(mine.first, other.first)
        assert mine.num_steps == other.num_steps


@pytest.mark.parametrize("estimator", ["block", "slq", "lean"])
def test_a_run_that_is_interrupted_and_one_that_is_extended_give_the_bits_of_a_straight_one(
    out, estimator
):
    options = {"estimator": estimator, "num_probes": 3}
    straight, extended = out.with_name("straight.h5"), out.with_name("extended.h5")
    density(straight, problem(), num_steps=9, **options)
    expected, plan = measure_of(straight)
    assert plan["estimator"] == estimator and plan["num_steps"] == 9
    interrupted(out, problem(), num_steps=9, **options)
    density(out, problem(), resume=True, num_steps=9, **options)
    same(measure_of(out)[0], expected)
    density(extended, problem(), num_steps=4, **options)
    assert len(measure_of(extended)[0].rules[0].t) < len(expected.rules[0].t)
    density(extended, problem(), resume=True, num_steps=9, **options)
    same(measure_of(extended)[0], expected)
    refused(extended, problem(), "finished, and it has 9 steps", num_steps=9, **options)
    options["num_probes"] = 4
    refused(extended, problem(), "--num-probes was 3 and is now 4", num_steps=10, **options)


def test_an_extension_is_counted_from_what_may_be_spent_in_all(out):
    few = {"num_probes": None, "num_steps": None}
    density(out, problem(), num_products=30, **few)
    assert measure_of(out)[1]["num_probes"] == 4 and measure_of(out)[1]["num_steps"] == 7
    density(out, problem(), resume=True, num_products=40, **few)
    measure, plan = measure_of(out)
    assert (plan["num_probes"], plan["num_steps"]) == (4, 10)
    assert measure.rules[0].num_steps == 10


def test_an_exhausted_space_cannot_be_extended(out):
    density(out, problem(), num_steps=10, num_probes=20)
    refused(out, problem(), "no step can add anything", num_steps=12, num_probes=20)


def test_a_run_whose_state_was_not_kept_cannot_be_extended(out):
    density(out, problem(), keep_state="never")
    refused(out, problem(), "its Krylov vectors were not kept", num_steps=STEPS + 1)


def test_a_target_ends_a_run_as_soon_as_it_is_reached_and_a_smaller_one_extends_it(out):
    free = {"num_probes": 6, "num_steps": None, "sigma2": 1e-2}
    density(out, problem(), target_error=0.2, **free)
    first, plan = measure_of(out)
    assert first.density_error(1e-2).total <= 0.2
    assert first.rules[0].num_steps < plan["num_steps"]
    density(out, problem(), target_error=0.05, resume=True, **free)
    second, _ = measure_of(out)
    assert second.density_error(1e-2).total <= 0.05
    assert second.rules[0].num_steps > first.rules[0].num_steps
    refused(out, problem(), "has reached --target-error 0.05: 0.2", target_error=0.2, **free)


def test_a_killed_run_that_had_saved_its_last_state_is_finished_without_a_product(out):
    density(out, problem())
    expected, _ = measure_of(out)
    out.unlink()  # the state was committed, the file not yet
    density(out, problem(), resume=True)
    measure, _ = measure_of(out)
    same(measure, expected)


def test_a_finished_result_outlives_a_full_disk_and_a_kill_while_its_state_is_kept(
    out, monkeypatch
):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hessian_spectrum.storage.shards.save_file", full)
    with pytest.raises(StateLost, match=r"Errno 28.*cannot be extended; its result is complete"):
        density(out, problem(), checkpoint_minutes=10.0)
    measure_of(out)
    out.with_name("run.h5.d").mkdir(exist_ok=True)  # killed before the first manifest
    (out.with_name("run.h5.d") / ".manifest.json.0123456789ab.tmp").touch()
    refused(out, problem(), "its Krylov vectors were not kept", num_steps=STEPS + 1)
    measure_of(out)


# -- without groups of the samples -----------------------------------------------------------------


def replicates(out):
    with hs.open(out) as run:
        assert run.finished
        return run["density"].replicates


def test_groups_are_left_out_in_an_interrupted_run_as_in_a_straight_one_and_later(out, tmp_path):
    (tmp_path / "straight").mkdir()
    straight = tmp_path / "straight" / "run.h5"
    density(straight, problem(), data_groups=2)
    expected = replicates(straight)

    asked = iter(range(10**6))

    def after_the_first_group():  # a look after each of the steps, and one after each group
        return "SIGTERM" if next(asked) >= STEPS else None

    with pytest.raises(Interrupted):
        density(out, problem(), StopAfterOneSave(out, after_the_first_group), data_groups=2)
    with hs.open(out) as run:
        assert not run.finished and run["density"].replicates is None
        assert run.plan["num_steps"] == STEPS
    density(out, problem(), resume=True)  # the groups are part of what was begun
    for name in ("nodes", "weights", "shares"):
        np.testing.assert_array_equal(getattr(replicates(out), name), getattr(expected, name))
    refused(out, problem(), "is finished, and it has 12 steps", data_groups=2)
    refused(out, problem(), "--data-groups was 2 and is now 3", data_groups=3)

    density(out, problem(), overwrite=True)
    assert replicates(out) is None
    density(out, problem(), resume=True, data_groups=2)
    np.testing.assert_array_equal(replicates(out).weights, expected.weights)
    with hs.open(out) as run:
        assert run.config["data_groups"] == 2
