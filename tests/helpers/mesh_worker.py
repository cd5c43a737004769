"""Run by test_mesh.py under torchrun: groups of ranks, and tasks handed out to them.

python mesh_worker.py FOLDER RANKS_PER_POINT
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from small_networks import NETWORKS, data
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.task_queue import Handout

TASKS, SLOW = 12, 0  # the first task takes as long as many others


def collectives(mesh):
    """What each collective of a group gives: the ranks of that group in it, and no other."""
    data, rank = mesh.data, mesh.world.rank
    row = torch.full((2, 1), float(rank))
    shared = torch.full((1, data.size), float(rank))
    told = None
    try:  # the groups fail at different times, or not at all
        failing = mesh.group == 0 and data.rank == data.size - 1
        data.raise_together(hs.InputError("too small") if failing else None)
    except hs.InputError as error:
        told = str(error)
    return {
        "sum": data.sum(torch.tensor(float(rank))).item(),
        "gathered": data.all_gather_rows(row).tolist(),
        "scattered": data.reduce_scatter_rows(shared).tolist(),
        "objects": data.gather_objects(rank),
        "any": data.any(rank == 0),
        "told": told,
    }


def loss(world):
    torch.manual_seed(0)
    ev = hs.Evaluator(NETWORKS["mlp"](), F.cross_entropy, data(10), batch_size=4, world=world)
    return ev.loss().item(), (hs.Hessian(ev) @ torch.ones(ev.n).double()).norm().item()


def handed_out(mesh, count=TASKS, stop_at=None):
    """[task, group] in the order of arrival on rank 0, for each rank what it had, and the times."""
    tasks, mine, received = Handout(mesh, count), [], []
    started = time.monotonic()
    while (task := tasks.next(stopping=bool(mine) and mine[-1] == stop_at)) is not None:
        mine.append(task)
        if task == SLOW:
            time.sleep(0.6)
        time.sleep(0.02)
        tasks.send([task, mesh.group])
        if mesh.world.rank == 0:
            received += tasks.received()
    left = time.monotonic() - started
    tasks.wait(lambda: received.extend(tasks.received()) if mesh.world.rank == 0 else None)
    return {
        "received": received,
        "mine": mesh.world.gather_objects(mine),
        "left": mesh.world.gather_objects(left),
    }


def refused(world):
    try:
        Mesh.of(world, world.size - 1)
    except hs.InputError as error:
        return str(error)


def main():
    folder, ranks_per_point = Path(sys.argv[1]), int(sys.argv[2])
    world = hs.distributed.start("cpu", timeout=timedelta(seconds=60))
    mesh = Mesh.of(world, ranks_per_point)
    results = {
        "refused": refused(world) if world.size > 2 else None,
        "places": world.gather_objects([mesh.group, mesh.data.rank, mesh.leads]),
        "collectives": world.gather_objects(collectives(mesh)),
        "loss": world.gather_objects(loss(mesh.data)),
        "handed out": handed_out(mesh),
        "fewer than groups": handed_out(mesh, 1),
        "none": handed_out(mesh, 0),
        "stopped": handed_out(mesh, 400, stop_at=3),
    }
    if world.rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    world.barrier()
    hs.distributed.finish()


if __name__ == "__main__":
    main()
