"""Groups of ranks: collectives stay inside a group, tasks go to whoever is free."""

import json

import pytest
from launching import TORCHRUN, launch
from locations import HELPERS

import hessian_spectrum as hs

WORKER = HELPERS / "mesh_worker.py"


@pytest.fixture(scope="module")
def alone():
    import mesh_worker

    return mesh_worker.loss(hs.World())


@pytest.mark.parametrize(
    ("ranks", "per_point"), [(3, 1), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_groups_of_ranks(ranks, per_point, alone, tmp_path):
    launch([*TORCHRUN, str(ranks), str(WORKER), str(tmp_path), str(per_point)], tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    groups = ranks // per_point
    if ranks > 2:
        text = f"ranks_per_point={ranks - 1} does not divide the {ranks} rank(s) of this job"
        assert found["refused"].startswith(text)
    assert found["places"] == [
        [r // per_point, r % per_point, r % per_point == 0] for r in range(ranks)
    ]
    for rank, heard in enumerate(found["collectives"]):
        group = rank // per_point
        members = list(range(group * per_point, (group + 1) * per_point))
        assert heard["sum"] == sum(members)
        assert heard["gathered"] == 2 * [members]
        assert heard["scattered"] == [[sum(members)]]
        assert heard["objects"] == members
        assert heard["any"] == (0 in members)
        where = "" if per_point == 1 else f"rank {per_point - 1} of {per_point}: "
        assert heard["told"] == (f"{where}too small" if group == 0 else None)
    for value, norm in found["loss"]:  # each group has all the data
        assert [value, norm] == pytest.approx(alone, rel=1e-12)
    assert len({tuple(pair) for pair in found["loss"]}) == 1  # and the same bits

    check_handed_out(found["handed out"], 12, groups, per_point)
    check_handed_out(found["fewer than groups"], 1, groups, per_point)
    check_handed_out(found["none"], 0, groups, per_point)
    if groups > 1:
        # Whoever had the slow task had few others, and nobody waited for it.
        slow = next(mine for mine in found["handed out"]["mine"] if 0 in mine)
        assert len(slow) <= 2
        assert min(found["handed out"]["left"]) < 0.6 < max(found["handed out"]["left"])
    stopped = sorted(task for task, _ in found["stopped"]["received"])
    assert stopped == list(range(len(stopped)))  # what was begun was finished
    assert 4 <= len(stopped) <= (4 if groups == 1 else 45)


def check_handed_out(found, count, groups, per_point):
    """Each task was done once, by one group, and its ranks agree on what they had."""
    assert sorted(task for task, _ in found["received"]) == list(range(count))
    mine = [found["mine"][group * per_point] for group in range(groups)]
    for rank, tasks in enumerate(found["mine"]):
        assert tasks == mine[rank // per_point]
    assert all(task in mine[group] for task, group in found["received"])
