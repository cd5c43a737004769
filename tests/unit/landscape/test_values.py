"""Values by name are a mapping whose missing names are errors in the user's words."""

import pytest

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results.values import Values


def test_a_name_that_was_not_evaluated_has_the_default():
    values = Values({"loss": [1.0, 2.0]})
    assert values.get("accuracy") is None
    assert values.get("accuracy", 0.5) == 0.5
    assert values.get("loss").tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match="no 'accuracy' was evaluated; there is: loss"):
        values["accuracy"]
