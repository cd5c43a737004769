"""Files that are damaged or forged: one line of error, or the answer of the intact file.

500 runs in this process, seeded: bytes, HDF5, manifests, stored plans, arrays, checkpoints, locks.
None takes memory for what a few bytes declare, none changes a file of the user.
"""

import contextlib
import io
import json
import resource
import shutil
import signal
import warnings

import hostile_files as hostile
import numpy as np
import pytest
import torch
from density_runs import problem
from stopping import StopOnceThere

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum.cli import read_commands
from hessian_spectrum.cli.exit_status import PATH_ERRORS
from hessian_spectrum.cli.read_commands import InfoConfig, PlotConfig, QueryConfig
from hessian_spectrum.commands import runner, surfaces
from hessian_spectrum.commands.density import Density
from hessian_spectrum.commands.eigenpairs import Eigenpairs
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.config import DensityConfig, EigenpairsConfig, SurfaceConfig
from hessian_spectrum.landscape import point_planner
from hessian_spectrum.landscape.results import Curve
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.storage import provenance
from hessian_spectrum.storage.writer_lock import WriterLock

MOST_MEMORY = 400 << 20  # bytes that all runs together may add to this process's peak
MOST_SECONDS = 20  # of one run
USERS = ("notes.txt", "weights.safetensors", "basis-000000-000004.safetensors", "mine.tmp")


# -- intact files ----------------------------------------------------------------------------------


def density(out, num_steps=3, **options):
    config = DensityConfig(
        out=out, num_probes=2, num_steps=num_steps, hvp="reverse", keep_state="always", **options
    )
    runner.run(Density, config, Problem(**problem()), hs.World(), StopRequest(), quiet=True)


def pairs(out, max_products=8, **options):
    config = EigenpairsConfig(
        out=out, k=2, tol=1e-9, max_products=max_products, hvp="reverse", **options
    )
    runner.run(Eigenpairs, config, Problem(**problem()), hs.World(), StopRequest(), quiet=True)


def surface(out, stop=None, **options):
    config = SurfaceConfig(
        out=out,
        directions=("random", "random"),
        x_points=4,
        y_points=3,
        checkpoint_minutes=0.0,
        **options,
    )
    runner.run(surfaces.SurfaceRun, config, Problem(**problem()), hs.World(), stop, quiet=True)


def in_small_tasks(*args, **options):
    plan, trials = planned(*args, **options)
    return type(plan)(chunk=2), trials


planned = point_planner.plan


@pytest.fixture(autouse=True)
def no_commits(monkeypatch):
    """Six processes of git in each run would take most of the time."""
    monkeypatch.setattr(provenance, "_commit", lambda folder: None)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    density(folder / "density.h5")
    pairs(folder / "pairs.h5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point_planner, "plan", in_small_tasks)
        with pytest.raises(Interrupted):
            surface(folder / "surface.h5", StopOnceThere(folder / "surface.h5"))
    t = np.linspace(0, 1, 5)
    curve = Curve(t, t, {"loss": t**2}, {"path": "linear", "ends": [0.0, 1.0]})
    with hs.open(folder / "density.h5") as one, hs.open(folder / "pairs.h5") as two:
        found = {"density": one["density"], "eigenpairs": two["eigenpairs"], "curve": curve}
        values = {"loss": 0.5, "names": np.array(["a", "b"])}
        hs.save(folder / "all.h5", **found, values=values, config={"model": "mlp"}, plan=one.plan)
    rng = np.random.default_rng(0)
    arrays = {"images": rng.random((20, 4, 4)), "labels": rng.integers(3, size=20)}
    np.savez(folder / "arrays.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    model = torch.nn.Linear(30, 20)
    torch.save(model.state_dict(), folder / "model.pt")
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model.safetensors")
    for state in folder.glob("*.d"):
        for name in USERS:
            (state / name).write_bytes(b"the user's own")
    return folder


# -- questions, each with an answer that can be compared -------------------------------------------


def told(path):
    """All that ``info`` and queries tell of a result file, and the bits of its arrays."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        read_commands.info(InfoConfig(path))
    lines = said.getvalue()
    assert lines.isprintable() or all(line.isprintable() for line in lines.splitlines())
    with hs.open(path) as run:
        held, arrays = set(run), {key: _bits(run[key]) for key in run}
    with contextlib.redirect_stdout(said):
        if "curve" in held:
            read_commands.query(QueryConfig(path, "barrier", json=True))
    return said.getvalue(), arrays


def _bits(value):
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), value.tobytes()
    if hasattr(value, "__array__") or hasattr(value, "entries"):
        return _bits(np.asarray(value))
    if isinstance(value, (list, tuple)):
        return [_bits(item) for item in value]
    if hasattr(value, "items"):
        return {key: _bits(item) for key, item in value.items()}
    return _bits(vars(value)) if hasattr(value, "__dataclass_fields__") else repr(value)


def resumed(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it goes back to an earlier manifest
        if path.stem == "density":
            density(path, num_steps=5, resume=True)
            with hs.open(path) as run:
                return run["density"].nodes, run["density"].weights
        if path.stem == "pairs":
            pairs(path, max_products=40, resume=True)
            with hs.open(path) as run:
                return run["eigenpairs"].values, run["eigenpairs"].residuals < 1e-6
        surface(path, StopRequest(), resume=True)
        with hs.open(path) as run:
            return (run["surface"].loss,)


def loaded(path):
    x, y = zoo.load_dataset("arrays", data_root=path).tensors
    return x.numpy(), y.numpy()


def weights(path):
    model = torch.nn.Linear(30, 20)
    zoo.load_checkpoint(model, path)
    return model.weight.detach().numpy(), model.bias.detach().numpy()


def same(found, expected):
    if isinstance(found[0], str):
        return found == expected
    return all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-6, atol=1e-9)
        for a, b in zip(found, expected, strict=True)
    )


# -- one run ---------------------------------------------------------------------------------------


class Runs:
    """Damages copies of intact files, asks, and notes what must not have happened."""

    def __init__(self, intact, work):
        self.intact, self.work, self.count, self.errors = intact, work, 0, 0
        self.expected = {}
        self.outside = work / "outside"
        self.outside.mkdir()
        for name in USERS:
            (self.outside / name).write_bytes(b"the user's own")
        self.before = hostile.snapshot(self.outside)
        self.faults = []

    def fresh(self, name):
        """A copy of an intact file, with its state, in a new folder."""
        folder = self.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in (self.intact / name, self.intact / f"{name}.d"):
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
            elif path.exists():
                shutil.copy(path, folder)
        return folder / name

    def __call__(self, name, ask, damage, why):
        if (name, ask) not in self.expected:
            self.expected[name, ask] = (
                ask(self.fresh(name)) if (self.intact / name).exists() else ()
            )
        path = self.fresh(name)
        damage(path)
        self.count += 1
        started = self.peak()
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(MOST_SECONDS)
        try:
            answer = ask(path)
        except (hs.InputError, *PATH_ERRORS) as error:
            self.errors += 1
            if len(str(error).splitlines()) != 1 or not str(error).isprintable():
                self.faults.append((why, f"not one line: {error!r}"))
        except BaseException as error:
            self.faults.append((why, f"{type(error).__name__}: {error}"[:300]))
        else:
            if not same(answer, self.expected[name, ask]):
                self.faults.append((why, "another answer"))
        finally:
            signal.alarm(0)
        if self.peak() - started > MOST_MEMORY:
            self.faults.append((why, f"took {(self.peak() - started) >> 20} MiB"))
        if hostile.snapshot(self.outside) != self.before:
            self.faults.append((why, "changed a file outside"))
        state = path.with_name(f"{name}.d")
        lost = [user for user in USERS if state.exists() and not (state / user).exists()]
        if lost and (self.intact / f"{name}.d").exists():
            self.faults.append((why, f"deleted {lost}"))

    @staticmethod
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _too_long(*args):
    raise TimeoutError("an endless run")


@pytest.fixture
def runs(intact, tmp_path):
    return Runs(intact, tmp_path)


def check(runs, count):
    assert runs.faults == [] and runs.count == count
    assert runs.errors > count // 4  # most damages are seen


# -- bytes -----------------------------------------------------------------------------------------


def cut_or_flipped(i, rng, limit=None):
    """The i-th damage of the bytes of a file."""

    def damage(path):
        if i % 4 == 0 and limit is None:
            hostile.truncate(path, rng)
        elif i % 2 and path.suffix == ".h5":
            hostile.flip_small(path, rng)
        else:
            hostile.flip(path, rng, limit)

    return damage


@pytest.mark.parametrize("name", ["all.h5", "surface.h5"])
def test_result_files_with_flipped_bits_and_cut_ends(runs, name):
    rng = np.random.default_rng(1)
    for i in range(70):
        runs(name, told, cut_or_flipped(i, rng), f"{name} {i}")
    check(runs, 70)


def flipped_state(name, rng):
    def damage(path):
        state = sorted(path.with_name(f"{name}.d").iterdir())
        ours = [file for file in state if file.name not in USERS]
        if rng.integers(2):
            hostile.flip_digit(path.with_name(f"{name}.d") / "manifest.json", rng)
        else:
            hostile.flip(ours[rng.integers(len(ours))], rng)

    return damage


def test_states_with_flipped_bits(runs):
    rng = np.random.default_rng(2)
    for i in range(20):
        name = ("density.h5", "pairs.h5")[i % 2]
        runs(name, resumed, flipped_state(name, rng), f"state of {name} {i}")
    check(runs, 20)


# -- HDF5 ------------------------------------------------------------------------------------------


def forged(forge, signed):
    def damage(path):
        with hostile.edited(path, signed) as file:
            forge(file, path)

    return damage


def test_forged_result_files(runs):
    bombs, others = hostile.bombs(), hostile.crafted()
    for why, forge in [*bombs.items(), *others.items()]:
        # Whoever signs reads all of it: a bomb would go off here.
        runs("all.h5", told, forged(forge, why not in bombs), why)
    check(runs, len(bombs) + len(others))


@pytest.mark.parametrize("sizes", [{"a": "x"}, [1, 2], {"a": -1}, {"a": 1.5}])
def test_a_stored_plan_without_sizes_of_parameters_is_refused(runs, sizes):
    path = runs.fresh("all.h5")
    with hostile.edited(path) as file:
        hostile.put("plan", json.dumps({"sizes": sizes}))(file, path)
    picture = PlotConfig(path, path.with_suffix(".png"), "eigenpairs", "participation")
    with pytest.raises(hs.InputError, match=r"plan\.sizes"):
        read_commands.plot(picture)
    with pytest.raises(hs.InputError, match=r"plan\.sizes"):
        read_commands.query(QueryConfig(path, "participation", (1.0,), result="eigenpairs"))


def test_no_text_in_a_file_becomes_a_line_of_its_own(runs, capsys):
    path = runs.fresh("all.h5")
    with hostile.edited(path) as file:
        config = {"model": "a\nhessian-spectrum: b", "x\ny": "\x1b[2J"}
        hostile.put("config", json.dumps(config))(file, path)
    read_commands.info(InfoConfig(path))
    said = capsys.readouterr().out
    assert r"model: 'a\nhessian-spectrum: b'" in said and "\x1b" not in said
    assert all(line.isprintable() for line in said.splitlines())


# -- manifests and stored plans --------------------------------------------------------------------


def is_free(place, value):
    """Would another number be as good as the one there? Nobody can tell, but by a checksum."""
    if type(value) is bool:
        return place[-1] in ("keep", "data_kept_on_device", "exhausted", "vectors", "copies")
    return place[0] in ("scale", "noise", "coefficients", "work", "world_size") or place[-1] in (
        *("product_repeat_error", "product_noise", "arithmetic_error", "chunk", "sizes"),
        *("sigma2", "target_error", "seconds", "products", "passes", "block_size"),
    )


def with_manifest(tree, i):
    def damage(path):
        hostile.write_manifest(path.with_name(f"{path.name}.d"), tree, signed=i % 2 == 0)
        if i % 3:
            path.unlink()  # killed before its first result

    return damage


@pytest.mark.parametrize("name", ["density.h5", "pairs.h5"])
def test_manifests_by_type_and_value(runs, name):
    rng = np.random.default_rng(3)
    whole = json.loads((runs.intact / f"{name}.d" / "manifest.json").read_text())
    for i in range(50):
        tree, place = hostile.spoiled(whole, rng, is_free)
        why = f"manifest of {name}, {'.'.join(map(str, place))}, {i}: {hostile.shown(tree, place)}"
        runs(name, resumed, with_manifest(tree, i), why)
    every = hostile.gaps(whole)
    for i, (why, tree) in enumerate(every.items()):
        runs(name, resumed, with_manifest(tree, i), f"manifest of {name}, {why}")
    check(runs, 50 + len(every))


def with_text(name, rng, why):
    def damage(path):
        with hostile.edited(path) as file:
            tree, place = hostile.spoiled(json.loads(file[name][()]), rng, is_free)
            why.append((place, hostile.shown(tree, place)))
            hostile.put(name, json.dumps(tree))(file, path)

    return damage


def test_stored_plans_by_type_and_value(runs):
    rng = np.random.default_rng(4)
    for i in range(30):
        why = [("plan", "provenance", "config")[i % 3], i]
        runs("surface.h5", resumed, with_text(why[0], rng, why), why)
    check(runs, 30)


# -- what others have written ----------------------------------------------------------------------


def test_arrays_and_checkpoints(runs):
    rng = np.random.default_rng(5)
    for name in ("arrays.npz", "packed.npz"):
        for i in range(20):
            runs(name, loaded, cut_or_flipped(i, rng), f"{name} {i}")
    # Nothing in these files tells that a number in them has changed.
    for name in ("model.pt", "model.safetensors"):
        for i in range(10):
            runs(name, weights, cut_or_flipped(0, rng), f"{name} cut {i}")
    for i in range(10):
        runs("model.safetensors", weights, cut_or_flipped(i, rng, 8), f"safetensors' header {i}")
    for kind, every in ((".npz", hostile.hostile_archives()), (".h5", hostile.hostile_arrays())):
        for why, forge in every.items():
            runs(f"forged{kind}", loaded, forge, f"{kind}: {why}")
    check(runs, 70 + len(hostile.hostile_archives()) + len(hostile.hostile_arrays()))


@pytest.mark.parametrize("name", ["host", "pid", "job", "restart", "started", "token", None])
def test_locks_by_type_and_value(tmp_path, name, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    lock = tmp_path / "run.h5.lock"
    owner = {"host": "elsewhere", "pid": 5, "job": "7", "restart": 2, "started": "now"}
    for value in hostile.WRONG:
        content = value if name is None else {**owner, "token": "theirs", name: value}
        lock.write_text(json.dumps(content))
        try:
            with WriterLock(tmp_path / "run.h5"):
                pass
        except hs.InputError as error:
            assert str(error).isprintable()
        assert [path.name for path in tmp_path.iterdir()] in ([], [lock.name])
