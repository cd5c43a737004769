"""A tracker's records, against their dense definitions, and its file over restarts."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum.tracking.stability import stability


class Training:
    """A small network, its optimizer, and a tracker on data of its own."""

    def __init__(self, path, make=None, seed=0, dtype=torch.float64, **options):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(60, 4, dtype=torch.float64, generator=generator).to(dtype)
        self.data = x, (x[:, :3] + 0.5 * x[:, 1:]).argmax(1)
        self.probe = self.data[0][:40], self.data[1][:40]
        make = make or (lambda p: torch.optim.SGD(p, lr=0.5))
        self.optimizer = make(self.model.parameters())
        self.loss_fn = nn.CrossEntropyLoss()
        self.evaluator = hs.Evaluator(self.model, self.loss_fn, self.probe, batch_size=15)
        options = {"every": 5, "at": (1,), "max_overhead": None, "tol": 1e-9, **options}
        self.tracker = hs.Tracker(self.evaluator, path, **options)
        self.theta, self.gradients, self.records = {}, {}, {}

    def steps(self, first, last):
        for step in range(first, last + 1):
            generator = torch.Generator().manual_seed(100 + step)
            chosen = torch.randint(60, (20,), generator=generator)
            self.optimizer.zero_grad()
            loss = self.loss_fn(self.model(self.data[0][chosen]), self.data[1][chosen])
            loss.backward()
            self.theta[step] = self.evaluator.theta
            self.gradients[step] = torch.cat([p.grad.flatten() for p in self.model.parameters()])
            self.tracker.before_step(step, self.optimizer)
            self.optimizer.step()
            record = self.tracker.after_step(step, loss)
            if record is not None:
                self.records[step] = record
        self.theta[last + 1] = self.evaluator.theta
        return self

    def loss(self, theta):
        names = dict(self.model.named_parameters())
        parts = theta.split([p.numel() for p in names.values()])
        own = {n: v.view_as(p) for (n, p), v in zip(names.items(), parts)}
        outputs = functional_call(self.model, own, (self.probe[0],))
        return self.loss_fn(outputs, self.probe[1])

    def hessian(self, theta):
        return hessian(self.loss)(theta)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_quantity_is_its_dense_definition(tmp_path, name):
    training = Training(tmp_path / "track.h5", OPTIMIZERS[name], largest=2)
    previous = None
    for step in range(1, 16):
        training.steps(step, step)
        record = training.records.get(step)
        assert (record is not None) == (step == 1 or step % 5 == 0)
        gradient = training.gradients[step]
        if record is not None:
            _compare(training, step, record, previous)
        previous = gradient
    with hs.open(tmp_path / "track.h5") as run:
        track = run["track"]
        assert track.steps.tolist() == [1, 5, 10, 15] and not run.finished
        assert track["lambda_max"].tolist() == [
            record["curvature/lambda_max"] for record in training.records.values()
        ]


def _compare(training, step, record, previous):
    theta, after = training.theta[step], training.theta[step + 1]
    h = training.hessian(theta)
    values, vectors = torch.linalg.eigh(h)
    close = {"rel": 1e-9, "abs": 1e-12}
    get = lambda name: record[f"curvature/{name}"]  # noqa: E731

    assert get("loss") == pytest.approx(training.loss(theta).item(), **close)
    gradient = torch.func.grad(training.loss)(theta)
    assert get("gradient_norm") == pytest.approx(gradient.norm().item(), **close)
    for key, exact in (("lambda_max", values[-1]), ("lambda_min", values[0])):
        assert abs(get(key) - exact.item()) <= get(f"{key}_error") + 1e-12
        assert get(f"{key}_error") <= 1e-8 * values.abs().max().item()
    update = after - theta
    assert get("step_length") == pytest.approx(update.norm().item(), **close)
    assert get("distance") == pytest.approx((theta - training.theta[1]).norm().item(), **close)
    one = training.gradients[step]
    assert get("minibatch_gradient_norm") == pytest.approx(one.norm().item(), **close)
    share = (vectors[:, -2:].T @ one).square().sum() / one.square().sum()
    assert get("captured") == pytest.approx(share.item(), rel=1e-6)
    if step > 1:
        one, two = training.gradients[step], previous
        assert get("cosine") == pytest.approx((one @ two / one.norm() / two.norm()).item(), **close)

    optimizer, lr = training.optimizer, training.optimizer.param_groups[0]["lr"]
    assert get("lr") == lr
    seen, threshold = h, 2 / lr
    states = [optimizer.state[p] for p in training.model.parameters()]
    if isinstance(optimizer, torch.optim.Adam):
        v = torch.cat([state["exp_avg_sq"].flatten() for state in states])
        p = (1 - 0.9**step) * ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        seen, threshold = h / (p.sqrt()[:, None] * p.sqrt()), 2 * 1.9 / (0.1 * lr)
    elif isinstance(optimizer, torch.optim.RMSprop):
        p = torch.cat([state["square_avg"].flatten() for state in states]).sqrt() + 1e-8
        seen = h / (p.sqrt()[:, None] * p.sqrt())
    elif optimizer.param_groups[0]["momentum"]:
        seen, threshold = h + 0.1 * torch.eye(len(h), dtype=h.dtype), 3.8 / lr
    exact = torch.linalg.eigvalsh(seen)
    assert abs(get("preconditioned") - exact[-1].item()) <= get("preconditioned_error") + 1e-9
    assert get("preconditioned_error") <= 1e-7 * exact.abs().max().item()
    assert get("threshold") == pytest.approx(threshold)
    assert get("num_above") == (values > 1.5 / lr).sum().item()

    if "curvature/critical" in record:
        eta = 2 / get("critical") / lr  # in units of the step that was made
        rises = [
            (training.loss(theta + s * update) - training.loss(theta)).item()
            for s in (0.5 * eta, 0.99 * eta, 1.01 * eta)
        ]
        assert rises[0] < 0 and rises[1] < 0 < rises[2]
    else:
        assert training.loss(theta + 1e-6 * update) > training.loss(theta)


def test_on_a_quadratic_critical_sharpness_and_sharpness_are_the_curvature(tmp_path):
    """f = sum of c theta^2 / 2 along one eigenvector: everything is known."""

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))

        def forward(self, x):
            return x * self.theta

    curvatures = torch.tensor([-0.5, 4.0, 1.0], dtype=torch.float64)
    model = Quadratic()
    loss_fn = lambda z, y: (curvatures * z.square()).sum(1).mean() / 2  # noqa: E731
    data = torch.ones(8, 3, dtype=torch.float64), torch.zeros(8)
    tracker = hs.Tracker(
        hs.Evaluator(model, loss_fn, data), tmp_path / "t.h5", at=(), every=1, max_overhead=None
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in (1, 2, 3):
        before = model.theta[1].item()
        model.theta.grad = curvatures * model.theta.detach()
        tracker.before_step(step, optimizer)
        optimizer.step()
        found = tracker.after_step(step)
        assert found["curvature/critical"] == pytest.approx(4.0, rel=1e-9)
        assert found["curvature/lambda_max"] == pytest.approx(4.0, rel=1e-9)
        assert found["curvature/lambda_min"] == pytest.approx(-0.5, rel=1e-9)
        assert found["curvature/threshold"] == pytest.approx(2 / 0.3)
        assert found["curvature/step_length"] == pytest.approx(abs(before) * 0.3 * 4.0)


def test_eigenvalues_above_the_edge_are_all_recorded_as_they_rise(tmp_path):
    training = Training(tmp_path / "track.h5", lambda p: torch.optim.SGD(p, lr=8.0), above=0.5)
    training.steps(1, 10)
    with hs.open(tmp_path / "track.h5") as run:
        track = run["track"]
    for i, step in enumerate(track.steps):
        exact = torch.linalg.eigvalsh(training.hessian(training.theta[int(step)])).flip(0)
        above = exact[exact > 0.5 / 8.0].numpy()
        found = track.eigenvalues[i][~np.isnan(track.eigenvalues[i])]
        assert len(found) >= len(above) == track["num_above"][i]
        np.testing.assert_allclose(found[: len(above)], above, rtol=1e-7)
    assert track["num_above"].max() >= 3


def test_relative_critical_sharpness_follows_the_same_update_on_other_data(tmp_path):
    training = Training(tmp_path / "a.h5")
    same = hs.Evaluator(training.model, training.loss_fn, training.probe)
    training.tracker = hs.Tracker(
        training.evaluator, tmp_path / "b.h5", at=(1,), relative={"other": same}, max_overhead=None
    )
    found = training.steps(1, 1).records[1]
    assert found["curvature/critical_other"] == pytest.approx(found["curvature/critical"], rel=1e-9)


def test_a_density_is_stored_beside_the_records(tmp_path):
    Training(tmp_path / "track.h5", density_every=10, num_products=30).steps(1, 20)
    with hs.open(tmp_path / "track.h5") as run:
        assert sorted(run) == ["density/step-000010", "density/step-000020", "track"]
        exact = Training(tmp_path / "other.h5").steps(1, 10)
        trace = exact.hessian(exact.theta[10]).trace().item()
        low, high = run["density/step-000010"].interval("trace")
        assert low - 0.2 * abs(trace) < trace < high + 0.2 * abs(trace)


def test_the_largest_preconditioned_eigenvalue_is_not_passed_over(tmp_path):
    """Pixels that are always 0 give eigenvectors apart from all others, here with decay."""
    torch.manual_seed(0)
    x, y = zoo.load_dataset("digits", limit=200).tensors
    x = x.double()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10)).double()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1)
    evaluator = hs.Evaluator(model, loss_fn, (x, y))
    tracker = hs.Tracker(evaluator, tmp_path / "track.h5", every=1, max_overhead=None)
    for step in range(1, 13):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        theta = evaluator.theta
        tracker.before_step(step, optimizer)
        optimizer.step()
        found = tracker.after_step(step)["curvature/preconditioned"]
        rule = stability(optimizer, dict(model.named_parameters()), 0.0)
        h = hs.Hessian(evaluator, theta).products(torch.eye(evaluator.n, dtype=torch.float64))
        seen = h + rule.shift * torch.eye(len(h), dtype=h.dtype)
        root = rule.preconditioner.sqrt()
        exact = torch.linalg.eigvalsh(seen / (root[:, None] * root))[-1].item()
        assert 0.98 * exact <= found <= (1 + 1e-9) * exact, step


def test_alignment_is_stored_beside_the_records(tmp_path):
    training = Training(
        tmp_path / "track.h5",
        largest=2,
        alignment_every=10,
        alignment_sizes=(8, "full"),
        alignment_batches=3,
    ).steps(1, 15)
    with hs.open(tmp_path / "track.h5") as run:
        assert [key for key in run if key.startswith("alignment")] == ["alignment/step-000010"]
        found = run["alignment/step-000010"]
    theta = training.theta[10]
    h = training.hessian(theta)
    g = torch.func.grad(training.loss)(theta)
    assert found.batch_sizes.tolist() == [8, 40] and found.counts().tolist() == [3, 1]
    assert found.alignment[1, 0] == pytest.approx((g @ h @ g / (g @ g)).item(), rel=1e-9)
    top = torch.linalg.eigh(h)[1][:, -2:]
    assert found.captured[1, 0] == pytest.approx(((top.T @ g).square().sum() / (g @ g)).item())


def test_the_overhead_is_bounded_and_skips_are_recorded(tmp_path, monkeypatch):
    clock, taken = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    training = Training(tmp_path / "track.h5", every=1, at=(), max_overhead=0.1)
    recorder = training.tracker._recorder
    values = recorder.values

    def slow(step, spare):
        found = values(step, spare)
        spare.taken = min(spare.seconds, 7.0)  # for a search of more than was asked
        taken.append(spare.taken)
        clock[0] += 5.0 + spare.taken
        return found

    monkeypatch.setattr(recorder, "values", slow)
    for step in range(1, 201):
        clock[0] += 1.0
        training.steps(step, step)
    spent = 5.0 * len(training.records) + sum(taken)
    assert 0.08 < spent / clock[0] <= 0.1 + 5.0 / clock[0]
    assert taken[0] == 0
    with hs.open(tmp_path / "track.h5") as run:
        track = run["track"]
    assert set(track.skipped) | set(track.steps) >= set(range(1, int(track.steps[-1]) + 1))
    assert not set(track.skipped) & set(track.steps)


def test_a_training_that_diverges_is_recorded_and_goes_on(tmp_path):
    training = Training(tmp_path / "track.h5", every=1, at=(), density_every=1, num_products=6)
    training.steps(1, 2)
    with torch.no_grad():
        training.model[0].weight.mul_(float("inf"))
    training.steps(3, 4)
    assert "curvature/lambda_max" not in training.records[3]
    assert training.records[3]["curvature/threshold"] == 4.0
    with hs.open(tmp_path / "track.h5") as run:
        track = run["track"]
        assert sorted(run) == ["density/step-000001", "density/step-000002", "track"]
    assert track.steps.tolist() == [1, 2, 3, 4]
    for name in ("loss", "lambda_max", "lambda_min", "preconditioned", "critical", "num_above"):
        assert np.isfinite(track[name]).tolist() == [True, True, False, False], name


@pytest.mark.parametrize("largest", [1, 3])
def test_the_lower_end_may_be_left_out(tmp_path, largest):
    training = Training(tmp_path / "track.h5", smallest=0, largest=largest).steps(1, 5)
    assert "curvature/lambda_min" not in training.records[5]
    exact = torch.linalg.eigvalsh(training.hessian(training.theta[5])).flip(0)[:largest]
    with hs.open(tmp_path / "track.h5") as run:
        np.testing.assert_allclose(run["track"].eigenvalues[1], exact.numpy(), rtol=1e-7)


# -- over restarts -------------------------------------------------------------------------------


def same_files(one, two):
    with hs.open(one) as a, hs.open(two) as b:
        assert sorted(a) == sorted(b)
        x, y = a["track"], b["track"]
        assert x.steps.tolist() == y.steps.tolist() and sorted(x.values) == sorted(y.values)
        for name in set(x.values) - {"seconds"}:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)
        for name in ("eigenvalues", "residuals", "lowest", "lowest_residuals"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name), err_msg=name)
        for key in set(a) - {"track"}:  # densities and alignments
            for name, array in vars(a[key]).items():
                if isinstance(array, np.ndarray):
                    np.testing.assert_array_equal(array, getattr(b[key], name), err_msg=name)


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        (torch.float64, 2),
        (torch.float32, 1),
        pytest.param(torch.float64, 1, marks=pytest.mark.slow),
        pytest.param(torch.float32, 2, marks=pytest.mark.slow),
    ],
)
def test_a_restarted_training_goes_on_with_the_same_bits(tmp_path, dtype, largest):
    options = {"largest": largest, "density_every": 10, "num_products": 20, "dtype": dtype}
    options |= {"alignment_every": 5, "alignment_batches": 2}
    options["tol"] = 1e-9 if dtype == torch.float64 else 1e-4
    Training(tmp_path / "whole.h5", OPTIMIZERS["adam"], **options).steps(1, 20)

    first = Training(tmp_path / "run.h5", OPTIMIZERS["adam"], **options).steps(1, 9)
    torch.save(
        {
            "model": first.model.state_dict(),
            "optimizer": first.optimizer.state_dict(),
            "tracker": first.tracker.state_dict(),
        },
        tmp_path / "checkpoint.pt",
    )
    first.steps(10, 17)  # lost: the process is killed here
    first.tracker.file._lock.__exit__()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again = Training(tmp_path / "run.h5", OPTIMIZERS["adam"], seed=9, **options)
    again.model.load_state_dict(saved["model"])
    again.optimizer.load_state_dict(saved["optimizer"])
    again.tracker.load_state_dict(saved["tracker"])
    again.steps(10, 20).tracker.close()
    same_files(tmp_path / "whole.h5", tmp_path / "run.h5")
    with hs.open(tmp_path / "run.h5") as run:
        assert run.finished


def test_wrong_use_is_told_in_one_line(tmp_path):
    path = tmp_path / "track.h5"
    training = Training(path).steps(1, 5)
    tracker = training.tracker
    with pytest.raises(hs.InputError, match=r"before_step\(5\): expected a step later than 5"):
        tracker.before_step(5, training.optimizer)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(hs.InputError, match=r"does not step 0.weight, 0.bias"):
        tracker.before_step(10, other)
    with pytest.raises(hs.InputError, match=r"does not step 0.weight, 0.bias"):
        Training(tmp_path / "new.h5").tracker.before_step(2, other)  # no record is due
    with pytest.raises(hs.InputError, match="exists already; restore the tracker"):
        Training(path).steps(1, 1)
    with pytest.raises(hs.InputError, match=r"step=6\.0: expected a whole number, 1 or more"):
        tracker.before_step(6.0, training.optimizer)
    with pytest.raises(hs.InputError, match=r"after_step\(6\): before_step was not called"):
        tracker.after_step(6)
    tracker.before_step(np.int64(6), training.optimizer)
    with pytest.raises(hs.InputError, match=r"after_step\(7\): .* not called .* but for step 6"):
        tracker.after_step(7)
    assert tracker.after_step(6) is None
    with pytest.raises(hs.InputError, match="load_state_dict of a NoneType"):
        tracker.load_state_dict(None)
    state = tracker.state_dict()
    with pytest.raises(hs.InputError, match="call it before the first step"):
        tracker.load_state_dict(state)
    alone = hs.Evaluator(nn.Linear(4, 3), nn.CrossEntropyLoss(), training.data)
    with pytest.raises(hs.InputError, match="a model of 43 parameters, the evaluator's has 15"):
        hs.Tracker(alone, path).load_state_dict(state)
    fresh = Training(tmp_path / "other.h5", seed=3).steps(1, 5).tracker
    with pytest.raises(hs.InputError, match="is not the file of the run that is restored"):
        Training(path).tracker.load_state_dict(fresh.state_dict())
    with pytest.raises(hs.InputError, match="had made 3; restore the file"):
        Training(path).tracker.load_state_dict({**state, "records": 3})
    with pytest.raises(
        hs.InputError, match="no tracker's state, previous, recorder, records, schedule are missing"
    ):
        Training(path).tracker.load_state_dict({"run": "1", "step": 3})
    for options, message in (
        ({"at": (0,)}, r"at=\(0,\): expected numbers of steps, 1 or more"),
        ({"alignment_every": 2, "alignment_sizes": (99,)}, "batch size 99: expected 1 to 40"),
        ({"every": 0}, "every=0: expected a whole number, 1 or more"),
        ({"above": -1.0}, "above=-1.0: expected a number above 0"),
        ({"largest": 99}, "of 43 eigenvalues"),
        ({"at": 3}, "at=3: expected numbers of steps"),
        ({"every": True}, "every=True: expected a whole number"),
        ({"above": "x"}, "above='x': expected a number above 0, or None"),
        ({"max_overhead": float("nan")}, "max_overhead=nan: expected a number above 0"),
        ({"tol": 0.0}, "tol=0.0: expected a number between 0 and 1"),
        ({"tol": None}, "tol=None: expected a number between 0 and 1"),
        ({"max_products": 0}, "max_products=0: expected a whole number"),
        ({"density_every": 100, "num_products": 0}, "num_products=0: expected a whole number"),
        ({"alignment_every": 100, "alignment_batches": 0}, "alignment_batches=0: expected"),
        ({"relative": {"test": training.model}}, r"relative\['test'\] is a Sequential"),
        ({"relative": {"": training.evaluator}}, r"relative\[''\]: expected a name"),
        ({"log": 3}, "log is a int; expected a function"),
        ({"seed": "x"}, "seed='x': expected a whole number"),
    ):
        with pytest.raises(hs.InputError, match=message):
            hs.Tracker(training.evaluator, tmp_path / "c.h5", **options)
    with pytest.raises(hs.InputError, match=r"expected an hs\.Evaluator"):
        hs.Tracker(training.model, path)


def test_wrapped_models_and_accumulated_gradients_count_optimizer_steps(tmp_path):
    """The evaluator looks at the eager module inside a compiled one."""
    training = Training(tmp_path / "track.h5")
    compiled = torch.compile(training.model, backend="eager")
    tracker = hs.Tracker(
        hs.Evaluator(compiled, training.loss_fn, training.probe),
        tmp_path / "compiled.h5",
        at=(1,),
        max_overhead=None,
        tol=1e-9,
    )
    for half in (slice(0, 10), slice(10, 20)):  # two minibatches, one step
        loss = training.loss_fn(compiled(training.data[0][half]), training.data[1][half]) / 2
        loss.backward()
    theta = training.evaluator.theta
    tracker.before_step(1, training.optimizer)
    training.optimizer.step()
    found = tracker.after_step(1)
    exact = torch.linalg.eigvalsh(training.hessian(theta))[-1].item()
    assert found["curvature/lambda_max"] == pytest.approx(exact, rel=1e-8)


def test_a_warm_up_from_a_learning_rate_of_0_is_recorded_without_a_threshold(tmp_path):
    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    training = Training(tmp_path / "track.h5", make).steps(1, 1)
    training.optimizer.param_groups[0]["lr"] = 0.1
    training.steps(2, 5)
    first, later = training.records[1], training.records[5]
    exact = torch.linalg.eigvalsh(training.hessian(training.theta[1]))[-1].item()
    assert first["curvature/lambda_max"] == pytest.approx(exact, rel=1e-8)
    assert first["curvature/lr"] == 0.0 and "curvature/threshold" not in first
    assert later["curvature/threshold"] == pytest.approx(20.0)
    about = training.tracker.file.track.about["threshold"]
    assert about == {"SGD": "known"}


def test_a_tracker_that_is_dropped_lets_the_next_one_write(tmp_path):
    """As where a cell of a notebook runs again in the same process."""
    path = tmp_path / "track.h5"
    training = Training(path).steps(1, 1)
    other = Training(path, overwrite=True)
    with pytest.raises(hs.InputError, match=r"this process itself is writing .* close\(\) it"):
        other.steps(1, 1)
    del training
    other.steps(2, 5)
    with hs.open(path) as run:
        assert run["track"].steps.tolist() == [5]


def test_a_closed_tracker_goes_on_only_where_it_is_restored(tmp_path):
    path = tmp_path / "track.h5"
    training = Training(path).steps(1, 5)
    state = training.tracker.state_dict()
    training.tracker.close()
    with pytest.raises(hs.InputError, match=r"before_step\(6\): the tracker is closed"):
        training.steps(6, 6)
    training.tracker.load_state_dict(state)
    training.steps(6, 10).tracker.close()
    with hs.open(path) as run:
        assert run["track"].steps.tolist() == [1, 5, 10] and run.finished
    path.unlink()
    with pytest.raises(hs.InputError, match="no such file, and the restored tracker had made 2"):
        Training(path).tracker.load_state_dict(state)
