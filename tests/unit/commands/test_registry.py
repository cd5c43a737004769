"""The table of commands."""

import pytest

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.commands import registry


def test_a_configuration_has_one_row():
    assert registry.command_of(hs.DensityConfig()).name == "density"
    configs = [row.config for row in registry.COMMANDS]
    names = [row.name for row in registry.COMMANDS]
    assert len(set(configs)) == len(set(names)) == len(registry.COMMANDS)
    with pytest.raises(InputError, match="a str is the configuration of no command"):
        registry.command_of("density")


def test_problem_is_the_evaluators_arguments_without_the_ranks():
    import dataclasses
    import inspect

    from hessian_spectrum.loss.problem import Problem

    expected = dict(inspect.signature(hs.Evaluator).parameters)
    del expected["world"]
    found = {field.name: field.default for field in dataclasses.fields(Problem)}
    missing = (inspect.Parameter.empty, dataclasses.MISSING)
    assert list(found) == list(expected)
    for name, parameter in expected.items():
        assert found[name] == parameter.default or (parameter.default, found[name]) == missing
