"""Groups and tasks of one process; groups that never come."""

import dataclasses

import pytest

import hessian_spectrum as hs
from hessian_spectrum.distributed import task_queue
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.task_queue import Handout
from hessian_spectrum.distributed.world import RankLost


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
