"""Plans over several ranks, by PyTorch's own means, of a model that is small enough to be run for real.

Each is a function without arguments that is called inside of a process group and returns what a factory may return.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.pipelining import schedules as pp
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch uses what it has deprecated itself
    from torch.distributed.nn.functional import all_to_all_single
    from torch.distributed.optim import ZeroRedundancyOptimizer

WIDTH, SEQ, BATCH = 24, 6, 8


class Block(nn.Module):
    """Norm, attention of one head by hand, and a feed-forward network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.saves = True

    def forward(self, x):
        run = self._run
        # the state of the random numbers, 5,056 bytes that no op makes, is not kept
        return run(x) if self.saves else checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)

    def _run(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Embedding, blocks, head; the loss is the mean of the output."""

    def __init__(self, width: int = WIDTH, blocks: int = 2, vocabulary: int = 40) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean()


def device():
    """The device that a real program would take."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tokens():
    return torch.zeros(BATCH, SEQ, dtype=torch.int64, device=device())


def mesh(*shape, names=None):
    return init_device_mesh(device().type, shape or (dist.get_world_size(),), mesh_dim_names=names)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=False)


# -- data parallel, sharded -----------------------------------------------------------------------------


def sharded(net=Net, over=None, change=None, step=None, optimizer=adam, whole=True, **options):
    """FSDP2 of each block and of the whole."""

    def make():
        model = net().to(device())
        if change is not None:
            change(model)
        on = over() if over is not None else mesh()
        for block in model.blocks:
            fully_shard(block, mesh=on, **options)
        if whole:
            fully_shard(model, mesh=on, **options)
        return {"model": model, "inputs": tokens(), "optimizer": optimizer(model.parameters()), "step": step or plain}

    return make


def plain(model, batch, optimizer):
    optimizer.zero_grad()
    model(batch).backward()
    optimizer.step()


def clipped(model, batch, optimizer):
    optimizer.zero_grad()
    model(batch).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
    optimizer.step()


def accumulated(sync=True, reshard=True):
    """Two micro-batches; without *sync* gradients are reduced in the last only, without *reshard* parameters stay."""

    def step(model, batch, optimizer):
        optimizer.zero_grad()
        for last, part in zip((False, True), batch.chunk(2), strict=True):
            model.set_requires_gradient_sync(last or sync)
            model.set_reshard_after_backward(last or reshard)
            model(part).backward()
        optimizer.step()

    return step


def frozen(model):
    for parameter in (*model.embedding.parameters(), *model.blocks[0].parameters()):
        parameter.requires_grad_(False)


def recomputed(model):
    for block in model.blocks:
        block.saves = False


def odd():
    """A width that no number of ranks divides."""
    return Net(width=13, blocks=2, vocabulary=17)


def bf16(**options):
    return {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, **options)}


def to_bf16(model):
    """The blocks put out fp32; the head's parameters are bf16 all the same."""
    model.head.register_forward_pre_hook(lambda _, inputs: inputs[0].bfloat16())


def last_dimension(parameter):
    return Shard(parameter.dim() - 1)


def two_dimensions():
    return mesh(2, dist.get_world_size() // 2, names=("replicate", "shard"))


# -- data parallel, replicated --------------------------------------------------------------------------


def reduced(_, bucket):
    """What gradients become in a group that moves nothing: PyTorch's reducer asks the fake one for a result in vain."""
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def momentum(parameters):
    """Its step needs no more than the backward pass, so that the peak is there."""
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, foreach=False)


def replicated(net=Net, step=plain, optimizer=momentum, hook=reduced, change=None, **options):
    def make():
        model = net().to(device())
        if change is not None:
            change(model)
        model = DistributedDataParallel(model, **options)
        if hook is not None:
            model.register_comm_hook(None, hook)
        return {"model": model, "inputs": tokens(), "optimizer": optimizer(model.parameters()), "step": step}

    return make


def without_sync(model, batch, optimizer):
    optimizer.zero_grad()
    first, second = batch.chunk(2)
    with model.no_sync():
        model(first).backward()
    model(second).backward()
    optimizer.step()


def zero1(parameters):
    return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, lr=1e-3, foreach=False)


def zero1_in_buckets(parameters):
    return ZeroRedundancyOptimizer(
        parameters, torch.optim.AdamW, lr=1e-3, foreach=False, parameters_as_bucket_view=True
    )


# -- tensor and sequence parallel -----------------------------------------------------------------------


def feed_forward(model, on):
    for block in model.blocks:
        parallelize_module(block, on, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def sequence(model, on):
    for block in model.blocks:
        plan = {
            "norm": SequenceParallel(),
            "up": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        }
        parallelize_module(block, on, plan)
        parallelize_module(block, on, {"up": ColwiseParallel(), "down": RowwiseParallel(output_layouts=Shard(1))})
    parallelize_module(
        model,
        on,
        {
            "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        },
    )


def tensor_parallel(plan=feed_forward, step=plain, optimizer=adam):
    def make():
        model = Net().to(device())
        plan(model, mesh())
        return {"model": model, "inputs": tokens(), "optimizer": optimizer(model.parameters()), "step": step}

    return make


def sharded_and_parallel(**options):
    """FSDP2 over the first dimension of the mesh, tensor parallel over the second."""

    def make():
        both = mesh(2, dist.get_world_size() // 2, names=("data", "tensor"))
        model = Net().to(device())
        feed_forward(model, both["tensor"])
        for block in model.blocks:
            fully_shard(block, mesh=both["data"], **options)
        fully_shard(model, mesh=both["data"], **options)
        return {"model": model, "inputs": tokens(), "optimizer": adam(model.parameters()), "step": plain}

    return make


# -- pipelines ------------------------------------------------------------------------------------------

MICRO = 4


def piped(schedule, stages_per_rank=1, v=False):
    """Each rank has one stage, or several: in turns, or there and back."""

    def make():
        rank, size = dist.get_rank(), dist.get_world_size()
        count = size * stages_per_rank
        mine = [rank, 2 * size - 1 - rank] if v else list(range(rank, count, size))
        parts = nn.ModuleList(nn.Sequential(Block(WIDTH), Block(WIDTH)) for _ in mine).to(device())
        example = torch.zeros(BATCH // MICRO, SEQ, WIDTH, device=device(), requires_grad=True)
        stages = [
            PipelineStage(part, number, count, device(), input_args=example, output_args=example)
            for part, number in zip(parts, mine, strict=True)
        ]
        options = {"n_microbatches": MICRO, "loss_fn": lambda output, target: (output - target).pow(2).mean()}
        run = schedule(stages[0] if stages_per_rank == 1 else stages, **options)
        first, last = 0 in mine, count - 1 in mine
        x = torch.zeros(BATCH, SEQ, WIDTH, device=device())

        def step(model, batch, optimizer):
            optimizer.zero_grad()
            run.step(*([batch] if first else []), **({"target": batch} if last else {}))
            optimizer.step()

        return {"model": parts, "inputs": x, "optimizer": adam(parts.parameters()), "step": step}

    return make


# -- experts --------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """One expert on each rank: tokens go there and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, WIDTH)
        self.expert = Block(WIDTH)

    def forward(self, tokens):
        x = self.embedding(tokens).flatten(0, 1)
        there = all_to_all_single(torch.empty_like(x), x)
        done = self.expert(there)
        return all_to_all_single(torch.empty_like(x), done).mean()


def experts():

    model = Experts().to(device())
    return {"model": model, "inputs": tokens(), "optimizer": adam(model.parameters()), "step": plain}


def by_hand():
    """Gradients are averaged by the user's own calls."""
    model = Net().to(device())

    def step(model, batch, optimizer):
        optimizer.zero_grad()
        model(batch).backward()
        works = [dist.all_reduce(p.grad, async_op=True) for p in model.parameters()]
        for work, parameter in zip(works, model.parameters(), strict=True):
            work.wait()
            parameter.grad /= dist.get_world_size()
        optimizer.step()

    return {"model": model, "inputs": tokens(), "optimizer": adam(model.parameters()), "step": step}


SMALL = {"bucket_cap_mb": 0.02}

PLANS = {
    "fsdp": (sharded(), 4),
    "fsdp, 2 ranks": (sharded(), 2),
    "fsdp, 8 ranks": (sharded(), 8),
    "fsdp, not resharded": (sharded(reshard_after_forward=False), 4),
    "fsdp, resharded to 2": (sharded(reshard_after_forward=2), 4),
    "fsdp, blocks only": (sharded(whole=False), 4),
    "fsdp, odd sizes": (sharded(odd), 4),
    "fsdp, odd sizes, 3 ranks": (sharded(odd), 3),
    "fsdp, more ranks than rows": (sharded(odd), 16),
    "fsdp, last dimension": (sharded(shard_placement_fn=last_dimension), 4),
    "fsdp, bf16": (sharded(**bf16()), 4),
    "fsdp, bf16, reduced in fp32": (sharded(**bf16(reduce_dtype=torch.float32)), 4),
    "fsdp, bf16, output fp32": (sharded(change=to_bf16, **bf16(output_dtype=torch.float32)), 4),
    "fsdp, clipped": (sharded(step=clipped), 4),
    "fsdp, sgd": (sharded(optimizer=lambda p: torch.optim.SGD(p, lr=1e-3, foreach=False)), 4),
    "fsdp, foreach": (sharded(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True)), 4),
    "fsdp, accumulated": (sharded(step=accumulated()), 4),
    "fsdp, accumulated unreduced": (sharded(step=accumulated(sync=False)), 4),
    "fsdp, accumulated unsharded": (sharded(step=accumulated(sync=False, reshard=False)), 4),
    "fsdp, frozen": (sharded(change=frozen), 4),
    "fsdp, recomputed": (sharded(change=recomputed), 4),
    "hsdp": (sharded(over=two_dimensions), 4),
    "hsdp, not resharded": (sharded(over=two_dimensions, reshard_after_forward=False), 8),
    "hsdp, bf16, reduced in fp32": (sharded(over=two_dimensions, **bf16(reduce_dtype=torch.float32)), 4),
    "hsdp, accumulated": (sharded(over=two_dimensions, step=accumulated(sync=False)), 4),
    "ddp": (replicated(**SMALL), 4),
    "ddp, one bucket": (replicated(), 4),
    "ddp, bucket views": (replicated(gradient_as_bucket_view=True, **SMALL), 4),
    "ddp, static graph": (replicated(static_graph=True, **SMALL), 4),
    "ddp, accumulated": (replicated(step=without_sync, **SMALL), 4),
    "ddp, accumulated, bucket views": (replicated(step=without_sync, gradient_as_bucket_view=True, **SMALL), 4),
    "ddp, frozen": (replicated(change=frozen, **SMALL), 4),
    "ddp, recomputed": (replicated(change=recomputed, **SMALL), 4),
    "ddp, zero 1": (replicated(optimizer=zero1, **SMALL), 4),
    "ddp, zero 1, bucket views": (replicated(optimizer=zero1_in_buckets, **SMALL), 4),
    "tp": (tensor_parallel(), 4),
    "tp, 2 ranks": (tensor_parallel(), 2),
    "tp, sequence": (tensor_parallel(sequence), 2),
    "fsdp x tp": (sharded_and_parallel(), 4),
    "fsdp x tp, 8 ranks": (sharded_and_parallel(), 8),
    "fsdp x tp, not resharded": (sharded_and_parallel(reshard_after_forward=False), 4),
    "gpipe": (piped(ScheduleGPipe), 4),
    "1f1b": (piped(pp.Schedule1F1B), 4),
    "interleaved 1f1b": (piped(pp.ScheduleInterleaved1F1B, 2), 2),
    "looped": (piped(pp.ScheduleLoopedBFS, 2), 2),
    "interleaved zero bubble": (piped(pp.ScheduleInterleavedZeroBubble, 2), 2),
    "zero bubble v": (piped(pp.ScheduleZBVZeroBubble, 2, v=True), 2),
    "experts": (experts, 4),
    "reduced by hand": (by_hand, 4),
}
"""By name: what makes it, and the number of ranks."""

EVERY_RANK = ("gpipe", "1f1b", "interleaved 1f1b", "looped", "interleaved zero bubble", "zero bubble v", "ddp, zero 1")
"""Plans all of whose ranks differ; of others the first and the last are looked at."""


def ranks_of(name: str) -> list[int]:
    """Return the ranks of a plan that may differ."""
    size = PLANS[name][1]
    return list(range(size)) if name in EVERY_RANK else [0, size - 1]
