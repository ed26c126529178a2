"""Ranks of a process group against real CPU tensors under PyTorch's fake one: live bytes between ops, and the peak."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from exhaustive import only  # noqa: E402
from rank_plans import PLANS, Net, ranks_of, sharded, tokens  # noqa: E402
from rank_truth import truth  # noqa: E402
from test_torch import boundaries  # noqa: E402
from torch import nn  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError, UsageError  # noqa: E402
from graphsim.sources.torch.capture import Capture, capture, gpu  # noqa: E402
from graphsim.sources.torch.group import Rank, process_group  # noqa: E402

CASES = [(name, rank) for name in PLANS for rank in ranks_of(name)]
ALWAYS = [("fsdp x tp", 3), ("ddp, bucket views", 0), ("1f1b", 1)]


def captured(make: Any, rank: int, size: int, target: str = "cpu") -> Capture:
    """Capture what *make* makes as one rank."""
    made: dict[str, Any] = {}

    def model() -> nn.Module:
        made.update(make())
        return made["model"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return capture(
            model,
            lambda: made["inputs"],
            optimizer=None,
            loss=None,
            step=None,
            words=lambda: {name: made[name] for name in ("step", "optimizer")},
            device=gpu(target),
            training=gs.Training(target=target, gpus=size, rank=rank),
        )


@pytest.mark.parametrize(("name", "rank"), only(ALWAYS, CASES))
def test_both_steps_of_a_rank_are_exact(name, rank):
    make, size = PLANS[name]
    real = truth(make, rank, size)
    ours = captured(make, rank, size)
    for number, graph in enumerate(ours.steps()):
        around = [b for b in boundaries(graph) if b.op != "storage_resize"]
        different = [
            (i, a, b)
            for i, (a, b) in enumerate(zip(around, real.boundaries[number], strict=True))
            if a.before != b.before or (a.after != b.after and not a.op.endswith("_"))
        ]
        assert not different, different[:3]
        assert gs.simulate(graph).peak == real.peaks[number]


@pytest.mark.parametrize("name", only(["fsdp, frozen", "ddp, static graph"], PLANS))
def test_every_plan_has_an_answer_for_cuda(name):
    make, size = PLANS[name]
    if name == "ddp, static graph" and torch.version.cuda and not torch.cuda.is_available():
        with pytest.raises(CaptureError, match="capture it with PyTorch's CPU build"):
            captured(make, 0, size, "cuda")
        return
    first, steady = captured(make, 0, size, "cuda").steps()
    assert 0 < gs.simulate(first).peak <= gs.simulate(steady).peak or "ddp" in name
    assert "ddp" in name or any("sent" in op.attributes for op in steady.ops)  # the hook of those moves nothing


# -- collectives --------------------------------------------------------------------------------------


def test_collectives_are_ops_of_their_own_with_what_a_rank_sends():
    make, size = sharded(), 2
    graph = captured(make, 0, size).graph()
    sent = {kind: [op for op in graph.ops if op.kind == kind] for kind in ("all_gather", "reduce_scatter")}
    parameters = sum(p.numel() * p.itemsize for p in Net().parameters())
    blocks = sum(p.numel() * p.itemsize for p in Net().blocks.parameters())
    # the root stays gathered between forward and backward, blocks are gathered for both; half of it is another rank's
    assert sum(op.attributes["sent"] for op in sent["all_gather"]) == (parameters + blocks) // 2
    assert sum(op.attributes["sent"] for op in sent["reduce_scatter"]) == parameters // 2
    assert {op.attributes["ranks"] for ops in sent.values() for op in ops} == {size}


# -- the group ----------------------------------------------------------------------------------------


def as_rank_five():
    with process_group(Rank(5, 8)):
        assert (dist.get_rank(), dist.get_world_size(), os.environ["RANK"]) == (5, 8, "5")
        dist.init_process_group("nccl")  # as real programs do
        assert dist.get_world_size(dist.new_group([4, 5])) == 2
        raise ZeroDivisionError


def test_a_group_is_there_inside_and_all_as_before_afterwards():
    from rank_truth import fake_group

    with fake_group(1, 3):
        outer, environment = dist.group.WORLD, dict(os.environ)
        with pytest.raises(ZeroDivisionError):
            as_rank_five()
        assert dist.group.WORLD is outer
        assert (dist.get_rank(), dist.get_world_size(), dict(os.environ)) == (1, 3, environment)
    assert not dist.is_initialized()


@pytest.mark.parametrize(("rank", "size"), [(8, 8), (-1, 8), (0, 0)])
def test_there_is_no_such_rank(rank, size):
    with pytest.raises(UsageError, match="rank"):
        Rank(rank, size)


# -- refused in one line ------------------------------------------------------------------------------


def first_fsdp():
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(Net())


def on_the_host():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(Net(), mesh=init_device_mesh("cpu", (2,)))


def without_shapes():
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    part = nn.Linear(4, 4)
    stage = PipelineStage(part, dist.get_rank(), 2, torch.device("cpu"))
    part.schedule = ScheduleGPipe(stage, 2, loss_fn=lambda y, t: y.sum())
    return part


@pytest.mark.parametrize(
    ("make", "target", "reason"),
    [
        (first_fsdp, "cpu", "FullyShardedDataParallel is not captured on several GPUs: use fully_shard"),
        (lambda: nn.DataParallel(Net()), "cpu", "DataParallel is not captured on several GPUs"),
        (on_the_host, "cuda", "a DTensor is on the cpu: for target cuda"),
        (without_shapes, "cpu", "stage 0 of the pipeline asks its neighbours for shapes"),
    ],
)
def test_what_is_not_captured_is_refused(make, target, reason):
    def step(model, batch, optimizer):
        model.schedule.step(torch.zeros(4, 4)) if hasattr(model, "schedule") else model(batch).backward()

    with pytest.raises(CaptureError, match=reason):
        gs.peak(make, tokens, step=step, gpus=2, rank=0, target=target)
    assert not dist.is_initialized()


def test_a_model_that_is_sharded_needs_the_number_of_gpus():
    with pytest.raises(CaptureError, match=r"say how many GPUs there are \(--gpus N, gpus=N\)"):
        gs.from_torch(lambda: nn.parallel.DistributedDataParallel(Net()), tokens)
