"""Models under FSDP2 and tensor parallelism have the Hessian of the whole model."""

import json
import sys

import pytest
from launching import TORCHRUN, launch
from locations import HELPERS

from hessian_spectrum.cli.main import main

WORKER = HELPERS / "sharded_worker.py"


@pytest.mark.parametrize(
    "ranks", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_sharded_models_have_the_hessian_of_the_whole_model(ranks, tmp_path):
    launch([*TORCHRUN, str(ranks), str(WORKER), str(tmp_path / "out")], tmp_path)
    result = json.loads((tmp_path / "out").read_text())
    cases = {case: found for case, found in result["found"].items() if found is not None}
    assert len(cases) == (6 if ranks % 2 == 0 else 5)
    for case, found in cases.items():
        assert found["kind"] == "exact", case
        assert not found["doubts"], case
        assert found["theta"] == 0.0, case
        for quantity in ("loss", "gradient", "products", "eigenvalues", "density"):
            assert abs(found.get(quantity, 0.0)) < 1e-9, (case, quantity)  # measured: 1e-13
        assert found.get("differences", 0.0) <= found.get("stated", 0.0) < 1e-6, case
        # This rank's share of theta, and the weights of one unit beside those of the next.
        shares = [rank[case] for rank in result["local"]]
        assert sum(shares) == found["n"], case
        assert max(shares) == -(-found["n"] // ranks), case
        assert found["peak"] <= 2 * (max(found["units"]) + ranks), case


def make(path, folder):
    (folder / "problem.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(HELPERS)!r})\n"
        "from sharded_models import sequences, transformer\n"
        "from torch import nn\n"
        "def make():\n"
        "    return transformer(), nn.CrossEntropyLoss(), sequences()\n"
    )
    return f"{folder / 'problem.py'}:make"


def test_a_run_is_resumed_on_another_number_of_ranks(tmp_path, capsys):
    import hessian_spectrum as hs

    problem = make("problem.py", tmp_path)
    words = ["density", "--problem", problem, "--sharded", "--num-probes", "2"]
    assert main([*words, "--num-steps", "8", "--out", str(tmp_path / "straight.h5")]) == 0
    out = ["--out", str(tmp_path / "run.h5")]
    module = ["-m", "hessian_spectrum"]
    launch([*TORCHRUN, "2", *module, *words, "--num-steps", "4", *out], tmp_path)
    launch([sys.executable, *module, *words, "--num-steps", "8", *out, "--resume"], tmp_path)
    with hs.open(tmp_path / "run.h5") as run, hs.open(tmp_path / "straight.h5") as straight:
        found, expected = run["density"], straight["density"]
        assert abs(found.nodes - expected.nodes).max() < 1e-9 * abs(expected.nodes).max()
        assert run.provenance["digests"] == straight.provenance["digests"]
