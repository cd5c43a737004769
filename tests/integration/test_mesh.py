"""Groups of ranks: collectives stay inside a group, tasks go to whoever is free."""

import dataclasses
import json
import sys

import pytest
from launching import TORCHRUN, launch
from locations import HELPERS

import hessian_spectrum as hs
from hessian_spectrum.distributed import task_queue
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.task_queue import Handout
from hessian_spectrum.distributed.world import RankLost

WORKER = HELPERS / "mesh_worker.py"


@pytest.fixture(scope="module")
def alone():
    sys.path.insert(0, str(WORKER.parent))
    import mesh_worker

    return mesh_worker.loss(hs.World())


@pytest.mark.parametrize(("ranks", "per_point"), [(3, 1), (4, 2)])
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


def test_one_process_is_a_mesh_of_one_group():
    mesh = Mesh.of(hs.World())
    tasks, mine = Handout(mesh, 3), []
    while (task := tasks.next()) is not None:
        mine.append(task)
        tasks.send({"task": task, "value": float("nan")})
    tasks.wait()
    assert mine == [0, 1, 2]
    assert [found["task"] for found in tasks.received()] == [0, 1, 2]
    assert Handout(mesh, 3).next(stopping=True) is None
    with pytest.raises(hs.InputError, match="does not divide the 1 rank"):
        Mesh.of(hs.World(), 2)


@pytest.mark.parametrize(
    ("silent", "lost"), [([[5]] * 9, 5), ([[1]] * 9, None), ([[5], [4], [5]], None), ([[]], None)]
)
def test_a_group_that_never_comes_is_named(silent, lost, monkeypatch):
    """Ranks 4 and 5 are the group that is waited for; one look without a sign is not enough."""
    monkeypatch.setattr(task_queue, "PATIENCE", 0.01)
    looks = iter(silent)

    class Presence:
        def silent(self):
            return next(looks)

    mesh = Mesh(hs.World(presence=Presence()), hs.World(), group=0, num_groups=3)
    tasks = Handout(dataclasses.replace(mesh, data=hs.World(size=2)), 1)
    tasks._store.set("here/1", "yes")
    if lost is None:
        tasks._require_alive({2})
    else:
        with pytest.raises(RankLost, match=f"rank {lost} of 1 has given no sign of life"):
            tasks.wait()
