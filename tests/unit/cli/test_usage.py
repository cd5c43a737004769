"""What users type and write, taken as they mean it or refused in one line."""

import dataclasses
import errno
import json
import math
import os
import re

import numpy as np
import pytest
import torch
from command_line import replaced
from own_problem import OWN
from safetensors import SafetensorError

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli import dispatch, read_commands
from hessian_spectrum.cli.main import RANK_HINTS, main
from hessian_spectrum.cli.parsing import parse
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.signals import Interrupted
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.zoo import problem_loader

ZOO = ["density", "--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30"]
TRAIN = ["train", "--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30"]


def refused(capsys, argv, *words, code=2):
    """One line on stderr, and no file that was not there before; returns the line."""
    capsys.readouterr()
    before = sorted(os.listdir())
    assert main(argv) == code
    said = capsys.readouterr().err.strip()
    for word in words:
        assert word in said
    assert "\n" not in said
    assert sorted(set(os.listdir()) - {"__pycache__"}) == sorted(set(before) - {"__pycache__"})
    return said


def parsed(*argv):
    return parse(argv, dispatch._commands(), "")


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (["--seed", "1", "--seed", "2"], "--seed was given twice"),
        (["--seed=1", "--seed", "1"], "--seed=1 and --seed are one option, given twice"),
        (["--num_steps", "3", "--num-steps", "4"], "--num_steps and --num-steps are one option"),
        (["--overwrite", "--overwrite"], "--overwrite was given twice"),
        (["--resume", "--no-resume"], "--resume and --no-resume are one option"),
    ],
)
def test_an_option_of_one_value_is_given_once(inside, capsys, words, said):
    refused(capsys, [*ZOO, "--out", "a.h5", *words], said)


@pytest.mark.parametrize(
    "name, text",
    [
        ("run.json", '{"seed": 1, "seed": 2}'),
        ("run.json", '{"num-steps": 1, "num_steps": 1}'),
        ("run.toml", "num-steps = 1\nnum_steps = 2\n"),
    ],
)
def test_an_option_stands_once_in_a_file(inside, capsys, name, text):
    (inside / name).write_text(text)
    refused(capsys, ["density", "--config", name], f"--config {name}: ", "is given twice")


@pytest.mark.parametrize(
    "words",
    [
        ["--problem-arg", "a=1", "--seed", "3", "--problem-arg", "b=2"],
        ["--problem-arg", "a=1", "b=2", "--seed", "3"],
        ["--problem-arg=a=1", "--problem_arg=b=2", "--seed=3"],
    ],
)
def test_options_of_several_values_can_be_repeated_or_listed(words):
    config = parsed("density", *words, "--parameters", "x.*", "--parameters", "y")
    assert (config.problem_arg, config.parameters) == (("a=1", "b=2"), ("x.*", "y"))
    assert config.seed == 3


def test_values_given_replace_the_default_and_do_not_add_to_it():
    assert parsed("surface", *ZOO[1:]).directions == ("random", "random")
    config = parsed("surface", *ZOO[1:], "--directions", "gradient", "--directions", "random")
    assert config.directions == ("gradient", "random")


def test_numbers_of_a_query_may_be_negative():
    assert parsed("query", "run.h5", "mass", "-0.5", "inf", "--json").numbers == (-0.5, math.inf)


@pytest.mark.parametrize(
    "option, value, expected",
    [
        ("--checkpoint-minutes", "-1", "0 or more"),
        ("--checkpoint-minutes", "nan", "0 or more"),
        ("--seed", str(2**64), "below 2^64"),
        ("--seed", "-1", "0 or more"),
        ("--init-seed", "-1", "0 or more"),
        ("--init-seed", str(2**64), "below 2^64"),
        ("--limit", "0", "1 or more"),
        ("--batch-size", "0", "1 or more"),
        ("--weight-decay", "-1", "0 or more"),
        ("--weight-decay", "nan", "a finite number"),
    ],
)
def test_values_that_no_run_can_use_are_refused_before_anything_is_read(option, value, expected):
    config = parsed(*(replaced(ZOO, option, value) if option in ZOO else [*ZOO, option, value]))
    with pytest.raises(InputError, match=rf"{option} {value}.*: expected .*") as caught:
        config.check()
    assert expected in str(caught.value).replace("\\", "")


def test_the_largest_seed_and_a_save_after_each_step_are_accepted():
    parsed(*ZOO, "--seed", str(2**64 - 1), "--checkpoint-minutes", "0").check()


@pytest.mark.parametrize("command", ["demo", "train", "density", "query", "plot", "info"])
def test_help_says_what_happens_without_an_option_in_words(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert "None" not in said and "default: )" not in said and "default: True" not in said
    text = " ".join(said.replace("│", " ").split())
    if command == "density":
        # Paragraphs are wrapped, not cut where the source is.
        assert "returns (model, loss_fn, data) or a dict of Evaluator's arguments." in text
        assert "--problem-arg a=1 --problem-arg b=2" in text
    assert ("--config FILE" in text) == (command in ("demo", "train", "density"))


@pytest.mark.parametrize("command, cls", [(name, cls) for name, cls, _ in dispatch._commands()])
def test_flags_that_switch_something_off_say_what_happens_then(command, cls, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(cls):
        if field.default is not True:
            continue
        flag = f"--no-{field.name.replace('_', '-')}"
        _, *described = text.split(f" {flag} ")  # the option, then its mention in the description
        assert len(described) >= 2, f"{command} {flag}: not described"
        assert re.match(r"(removes|skips|stores|leaves) ", described[-1]), described[-1][:60]


@pytest.mark.parametrize("command, cls", [(name, cls) for name, cls, _ in dispatch._commands()])
def test_each_command_describes_itself_with_an_example_and_its_exit_codes(command, cls, capsys):
    if command == "query":
        return  # described by the table of queries
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert f"\n      hessian-spectrum {command} " in said
    assert said.count("Exit codes:") == 1
    assert ("75 stopped" in said) == hasattr(cls, "resume")


def test_an_old_files_switches_still_mean_the_same(inside):
    old = {"shortcut": False, "batchnorm": False, "copies": False, "vectors": True}
    (inside / "run.json").write_text(json.dumps(old))
    config = parsed("eigenpairs", "--config", "run.json", "--no-vectors")
    assert (config.shortcut, config.batchnorm, config.copies, config.vectors) == (False,) * 4


# -- a --config file -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num-steps": "many"}, "num-steps is 'many'; expected a whole number"),
        ({"num_steps": 9.5}, "num-steps is 9.5; expected a whole number"),
        ({"num_steps": True}, "num-steps is True; expected a whole number"),
        ({"num_steps": []}, "num-steps is []; expected a whole number"),
        ({"weight_decay": "0"}, "weight-decay is '0'; expected a number"),
        ({"weight_decay": 10**400}, "expected a number"),
        ({"resume": 1}, "resume is 1; expected true or false"),
        ({"split": "dev"}, "split is 'dev'; expected 'train' or 'test'"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected 'float32' or 'float64'"),
        ({"out": 3}, "out is 3; expected a path"),
        ({"parameters": ["a", 1]}, "parameters is ['a', 1]; expected a list, each a text"),
        ({"model": ["mlp"]}, "model is ['mlp']; expected a text"),
        ({"num_step": 3}, "unknown option num_step; expected among"),
        ([{"num_steps": 3}], "holds a list; expected a table"),
        (3, "holds a int; expected a table"),
    ],
)
def test_a_config_file_of_wrong_types_is_refused_by_file_and_field(inside, capsys, fields, message):
    (inside / "run.json").write_text(json.dumps(fields))
    refused(capsys, ["density", "--config", "run.json"], "--config run.json: ", message)


def test_values_of_a_config_file_become_those_of_the_fields(inside):
    (inside / "run.toml").write_text(
        'parameters = "layer1.*"\nproblem-arg = ["a=1", "b=2"]\nweight_decay = 1\nout = "x.h5"\n'
        "num-steps = 7\ndry-run = true\ncheckpoint_minutes = inf\n"
    )
    config = parsed("density", "--config", "run.toml", "--num-steps", "8")
    assert config.parameters == ("layer1.*",) and config.problem_arg == ("a=1", "b=2")
    assert isinstance(config.weight_decay, float) and config.out.name == "x.h5"
    assert config.dry_run and config.num_steps == 8 and config.checkpoint_minutes == math.inf
    again = parsed("density", "--config", "run.toml", "--problem-arg", "c=3")
    assert again.problem_arg == ("c=3",)  # the command line wins, it does not add


def test_config_belongs_to_commands_that_compute_and_names_one_file(inside, capsys):
    refused(capsys, ["info", "a.h5", "--config", "x.toml"], "--config goes behind demo, train")
    refused(capsys, ["density", "--config"], "--config needs a file")
    refused(capsys, ["density", "--config", "a", "--config=b"], "was given 2 times")


# -- a problem of the user's own -----------------------------------------------------------------


def loaded(*argv):
    config = parsed("density", "--problem", "mine.py:make", *argv)
    problem = problem_loader.load(config)
    return problem, problem_loader.settled(config, problem)


@pytest.mark.parametrize("loader, own_size", [(True, 7), (False, 11)])
def test_the_problem_decides_what_no_option_does(inside, loader, own_size):
    (inside / "mine.py").write_text(OWN)
    source = ["--problem-arg", f"loader={loader}"]
    problem, config = loaded(*source)
    evaluator = problem.evaluator()
    assert next(len(y) for _, y in evaluator.batches) == own_size == config.batch_size
    assert (evaluator.weight_decay, evaluator.dtype) == (0.5, torch.float64)
    assert (config.weight_decay, config.dtype, config.parameters) == (0.5, "float64", ("1.*",))

    options = ["--batch-size", "4", "--weight-decay", "0", "--dtype", "float32"]
    options += ["--parameters", "3.*"]
    problem, config = loaded(*source, *options)
    evaluator = problem.evaluator()
    assert next(len(y) for _, y in evaluator.batches) == 4 == config.batch_size
    assert (evaluator.weight_decay, evaluator.dtype) == (0, torch.float32)
    assert evaluator.layout.names == ("3.weight", "3.bias")
    assert (config.weight_decay, config.dtype, config.parameters) == (0, "float32", ("3.*",))


def test_a_problem_that_decides_nothing_gets_the_evaluators_defaults():
    config = parsed(*ZOO)
    config = problem_loader.settled(config, problem_loader.load(config))
    assert (config.batch_size, config.weight_decay, config.parameters) == (512, 0, ())


def test_a_loader_that_makes_its_own_batches_keeps_them(inside, capsys):
    (inside / "mine.py").write_text(OWN)
    run = ["density", "--problem", "mine.py:batches"]
    refused(capsys, [*run, "--batch-size", "4"], "--batch-size 4 cannot change a DataLoader")


@pytest.mark.parametrize(
    "source, function, message",
    [
        ("def make():\n    x = 1\n    1 / 0\n", "make", "line 3: ZeroDivisionError: division"),
        ("import torch\nimport nothing_here\n", "make", "line 2: ModuleNotFoundError: No module"),
        ("def make(:\n", "make", "line 1: SyntaxError: invalid syntax"),
        ("def make():\n  f()\ndef f():\n  raise KeyError\n", "make", "line 4: KeyError"),
        ("import json\ndef make():\n    json.loads('{')\n", "make", "line 3: JSONDecodeError"),
        ("import sys\nsys.exit(0)\n", "make", "line 2: SystemExit: 0"),
        ("def make():\n    open('none.csv')\n", "make", "line 2: FileNotFoundError"),
        ("make = 3\n", "make", "own.py has no function make"),
        ("def make(width):\n    pass\n", "make", "missing a required argument: 'width'"),
        ("def make(): return [1]\n", "make", "returned a list; expected (model, loss_fn, data)"),
        ("def make(): return 1, 2\n", "make", "returned a tuple of 2; expected"),
        ("def make(): return dict(model=1)\n", "make", "returned a dict without loss_fn, data"),
        ("def make(): return 1, 2, 3\n", "make", "returned a int as model; expected a torch.nn"),
        (OWN + "def make2(): return make(lr=1)\n", "make2", "unknown lr; expected Evaluator's"),
        (OWN + "def make2(): return make(world=1)\n", "make2", "reduction, count, weight_decay"),
        (OWN + "def make2(): return make(parameters=3)\n", "make2", "a int as parameters"),
    ],
)
def test_errors_in_the_users_file_are_one_line_with_its_place(
    inside, capsys, source, function, message
):
    (inside / "own.py").write_text(source)
    said = refused(capsys, ["density", "--problem", f"own.py:{function}"], message)
    assert f"--problem own.py:{function}" in said


def test_arguments_that_the_function_does_not_take_are_refused_with_those_it_does(inside, capsys):
    (inside / "own.py").write_text("def make(width=3, depth=2): pass\n")
    run = ["density", "--problem", "own.py:make", "--problem-arg", "widht=4"]
    refused(capsys, run, "unexpected keyword argument 'widht'", "width=3, depth=2")


# -- on many ranks, before they know each other --------------------------------------------------


@pytest.mark.parametrize("rank, size", RANK_HINTS)
@pytest.mark.parametrize("argv", [["density"], ["density", "--num-steps", "x"], ["densty"]])
def test_only_the_first_rank_prints_a_usage_error(monkeypatch, capsys, rank, size, argv):
    said = {}
    monkeypatch.setattr(dispatch, "PATIENCE", 0)
    monkeypatch.setenv(size, "3")
    for index in ("0", "1", "2"):
        monkeypatch.setenv(rank, index)
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code
        assert code == 2
        said[index] = "".join(capsys.readouterr())
    assert said["0"].strip() and not said["1"] + said["2"]


def test_a_variable_that_happens_to_be_called_rank_silences_nobody(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    assert main(["density"]) == 2
    assert "name a problem" in capsys.readouterr().err


# -- failures of the machine ---------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """What torch raises on a GPU."""


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "No space left on device", "run.h5"), ["run.h5", "make room"]),
        (OSError(errno.EIO, "Input/output error"), ["Input/output error"]),
        (SafetensorError("I/O error: No space left (os error 28)"), ["os error 28"]),
        (MemoryError("Unable to allocate 9 TiB"), ["out of memory", "9 TiB", "--memory"]),
        (OutOfMemoryError("CUDA out of memory"), ["out of memory", "--num-probes"]),
        (RuntimeError("can't allocate memory: 9 bytes"), ["out of memory", "--batch-size"]),
    ],
)
def test_what_the_machine_cannot_do_is_one_line_and_exit_code_1(capsys, monkeypatch, error, words):
    def fail(*_, **options):
        raise error

    monkeypatch.setattr(runner, "run", fail)
    refused(capsys, ZOO, *words, code=1)
    if isinstance(error, (OSError, MemoryError)):
        monkeypatch.setattr(read_commands, "info", fail)
        refused(capsys, ["info", "run.h5"], words[0], code=1)


ENDS = [OSError(errno.EIO, "Input/output error"), Interrupted("SIGTERM")]


@pytest.mark.parametrize("error", ENDS, ids=["disk", "signal"])
@pytest.mark.parametrize("earlier", [(), ("--overwrite",), ("--resume",)])
@pytest.mark.parametrize("writes", ["density.h5", "density.h5.d/manifest.json", None])
def test_that_something_is_saved_is_said_only_where_it_is(
    inside, capsys, monkeypatch, error, earlier, writes
):
    def run(*_, **options):
        if writes:
            (inside / writes).write_text("of this run")
        raise error

    (inside / "density.h5.d").mkdir()
    if earlier:  # the file of an earlier run
        (inside / "density.h5").write_text("earlier")
    monkeypatch.setattr(runner, "run", run)
    assert main([*ZOO, *earlier]) == (75 if isinstance(error, Interrupted) else 1)
    said = capsys.readouterr().err
    is_saved = bool(writes) or earlier == ("--resume",)
    assert ("the same command with --resume continues" in said) == is_saved


@pytest.mark.parametrize("where", ["file", "model"])
@pytest.mark.parametrize("raised", ["sys.exit(0)", "raise KeyboardInterrupt", "raise Own('x')"])
def test_users_code_that_ends_the_process_is_one_line_and_no_success(inside, capsys, where, raised):
    at = {"file": "pass", "model": "pass", where: raised}
    (inside / "own.py").write_text(
        "import sys, torch\nfrom torch import nn\n"
        "class Own(BaseException): pass\n"
        "class Model(nn.Linear):\n"
        f"    def forward(self, x):\n        {at['model']}\n        return super().forward(x)\n"
        f"def make():\n    {at['file']}\n"
        "    return Model(2, 2), nn.CrossEntropyLoss(), (torch.ones(4, 2), torch.arange(4) % 2)\n"
    )
    code = main(["density", "--problem", "own.py:make", "--num-products", "4"])
    said = capsys.readouterr().err.strip()
    assert code == (2 if raised == "sys.exit(0)" else 1), said
    assert "own.py" in said and said.count("\n") == 0
    line = {"file": 9, "model": 6}[where]
    assert f"own.py:{line}" in said or f"line {line}" in said


def test_a_full_disk_while_training_is_one_line_and_leaves_no_folder(inside, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos 8512")

    monkeypatch.setattr(torch, "save", fail)
    words = ["epoch-0001.pt cannot be written", "is the disk full?"]
    refused(capsys, [*TRAIN, "--epochs", "1"], *words, code=1)


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    def fail(*_):
        raise AssertionError("ours")

    monkeypatch.setattr(runner, "run", fail)
    with pytest.raises(AssertionError, match="ours"):
        main(ZOO)


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, value",
    [
        ("lr", "0"),
        ("lr", "-1"),
        ("lr", "nan"),
        ("lr", "inf"),
        ("momentum", "1"),
        ("momentum", "-0.1"),
        ("momentum", "nan"),
        ("weight-decay", "-1"),
        ("weight-decay", "inf"),
        ("seed", "-1"),
        ("seed", str(2**64)),
        ("limit", "0"),
    ],
)
def test_settings_that_cannot_train_are_refused_without_a_folder(inside, capsys, option, value):
    words = [*TRAIN, "--epochs", "1", "--lr", "0.1", "--momentum", "0", "--weight-decay", "0"]
    words = replaced([*words, "--seed", "0"], f"--{option}", value)
    refused(capsys, words, f"--{option} {value}"[:9], "expected")


def test_data_that_do_not_fit_are_refused_and_earlier_checkpoints_stay(inside, capsys):
    images = np.zeros((4, 1, 8, 8), np.float32)
    np.savez("labels.npz", images=images, labels=np.array([0, 1, 2, 12]))
    other = {"test_images": images[..., :4], "test_labels": np.zeros(4, np.int64)}
    np.savez("other.npz", images=images, labels=np.zeros(4, np.int64), **other)
    (inside / "nets").mkdir()
    (inside / "nets" / "epoch-0001.pt").write_text("earlier")
    arrays = ["train", "--model", "mlp-64-4-10", "--dataset", "arrays", "--out", "nets"]
    arrays += ["--overwrite", "--data-root"]
    refused(capsys, [*arrays, "labels.npz"], "label 12, but the model has 10 outputs")
    refused(capsys, [*arrays, "other.npz"], "the model cannot evaluate inputs of shape (1, 8, 4)")
    refused(capsys, [*arrays, "none.npz"], "none.npz")
    assert (inside / "nets" / "epoch-0001.pt").read_text() == "earlier"


def test_no_empty_folder_is_left_by_a_failure(inside, capsys):
    diverging = ["--lr", "1e38", "--activation", "relu", "--batch-size", "16", "--epochs", "1"]
    refused(capsys, [*TRAIN, *diverging], "diverged", code=1)


def test_a_failure_keeps_what_was_there(inside):
    from hessian_spectrum.commands.train import folder

    for name, content in (("mine", None), ("new", "epoch-0001.pt")):
        path = inside / name
        if content is None:
            path.mkdir()
        with pytest.raises(KeyboardInterrupt), folder(path):
            if content:
                (path / content).write_text("written")
            raise KeyboardInterrupt
        assert path.is_dir()


# -- answers as JSON -----------------------------------------------------------------------------


def strictly(text):
    def no(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=no)


def test_json_is_json_where_answers_are_not_finite(inside, capsys):
    nodes = np.array([-1.0, 2.0])
    measure = SpectralMeasure(nodes, np.full((1, 2), 0.5), 10, np.zeros(2), np.zeros(2, bool))
    values = {"loss": math.nan, "gradient_norm": math.inf, "losses": np.array([1, -math.inf])}
    hs.save("run.h5", measure, start=values, config={"lr": math.inf})
    assert main(["query", "run.h5", "count", "-inf", "inf", "--json"]) == 0
    answer = strictly(capsys.readouterr().out)
    assert answer["arguments"] == ["-inf", "inf"] and answer["value"] == pytest.approx(10)
    assert answer["standard_error"] is None
    assert main(["info", "run.h5", "--json"]) == 0
    contents = strictly(capsys.readouterr().out)
    stored = contents["results"]["values/start"]
    assert stored == {"loss": None, "gradient_norm": "inf", "losses": [1, "-inf"]}
    assert contents["config"] == {"lr": "inf"}
