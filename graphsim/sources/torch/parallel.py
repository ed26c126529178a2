"""PyTorch's own wrappers around the blocks of a model that is not wrapped: data, fully sharded, tensor parallel."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import nn

from graphsim.errors import UsageError
from graphsim.sources.torch.blocks import blocks
from graphsim.sources.torch.optimizers import ByModel
from graphsim.step.training import Training

COLUMNS = frozenset(
    (
        "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "wq", "wk", "wv", "w1", "w3", "q_lin", "k_lin", "v_lin",
        "query", "key", "value", "fc1", "lin1", "up", "gate", "linear1",
    )
)  # fmt: skip
"""Names of linear layers that are split by their outputs, as models of transformers call them."""

ROWS = frozenset(("o_proj", "down_proj", "wo", "w2", "out_lin", "out_proj", "fc2", "lin2", "down", "linear2"))
"""Names of those that are split by their inputs, and whose results are summed."""


def wrapped(model: nn.Module, training: Training, device: str) -> tuple[nn.Module, list[str]]:
    """Return *model* wrapped as *training* says, on a mesh of the type *device*, and in words what was done.

    Raises:
        UsageError: it has no blocks, or no linear layers of known names to split.
    """
    size = dist.get_world_size()
    tensor = training.tp or 1
    if size % tensor:
        raise UsageError(f"--tp {tensor} does not divide --gpus {size}")
    data = size // tensor
    if training.tp and data > 1 and not training.fsdp:
        raise UsageError(f"--tp {tensor} of {size} GPUs leaves {data} copies: add --fsdp, which shards over them")
    if training.ddp:
        return nn.parallel.DistributedDataParallel(model), [f"ddp: DistributedDataParallel over {size} ranks"]
    mesh = dist.device_mesh.init_device_mesh(device, (data, tensor), mesh_dim_names=("data", "tensor"))
    said = []
    if training.tp:
        said.append(_split(model, mesh["tensor"]))
    if training.fsdp:
        over = mesh["data"] if training.tp else dist.device_mesh.init_device_mesh(device, (size,))
        said.append(_shard(model, over, reshard=training.reshard))
    return model, said


def _shard(model: nn.Module, mesh: Any, *, reshard: bool) -> str:
    from torch.distributed.fsdp import fully_shard

    found = blocks(model)
    kinds = Counter(type(block).__name__ for block in found)
    options: dict[str, Any] = {} if reshard else {"reshard_after_forward": False}
    for block in found:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    each = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    kept = "" if reshard else ", not resharded after forward"
    return f"fsdp: fully_shard of {f'{each} and of ' if each else ''}the whole, over {mesh.size()} ranks{kept}"


def with_sharded_states(make: Any) -> Any:
    """Return what makes the optimizer that *make* does, its states sharded by whole parameters over all ranks.

    Raises:
        UsageError: *make* is no function of the parameters.
    """
    if isinstance(make, ByModel) or not callable(make):
        raise UsageError("--zero1 wraps one optimizer that is made of parameters: name one, such as adamw")

    def sharded(parameters: Any) -> Any:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        plain: Any = make
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch uses what it has deprecated itself
            return ZeroRedundancyOptimizer(parameters, plain, parameters_as_bucket_view=False)

    return sharded


def most_states(optimizer: Any) -> int:
    """Return the rank whose parameters have most elements, of an optimizer that `with_sharded_states` made."""
    parts = optimizer._partition_parameters()
    sizes = [sum(p.numel() for group in groups for p in group["params"]) for groups in parts]
    return max(range(len(sizes)), key=sizes.__getitem__)


def _split(model: nn.Module, mesh: Any) -> str:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    found: Counter[str] = Counter()
    for block in blocks(model):
        plan = {path: _style(path, ColwiseParallel, RowwiseParallel) for path in _linear(block, mesh.size())}
        if any(isinstance(style, ColwiseParallel) for style in plan.values()):
            parallelize_module(block, mesh, plan)
            found.update(path.rpartition(".")[2] for path in plan)
    if not found:
        raise UsageError(
            f"--tp: {type(model).__name__} has no blocks with linear layers of known names "
            f"({', '.join(sorted(COLUMNS)[:4])}, ...): call parallelize_module in your factory"
        )
    return f"tp: {', '.join(f'{count} x {name}' for name, count in found.items())}, over {mesh.size()} ranks"


def _style(path: str, columns: Any, rows: Any) -> Any:
    return columns() if path.rpartition(".")[2] in COLUMNS else rows()


def _linear(block: nn.Module, ranks: int) -> Mapping[str, nn.Linear]:
    """Return the layers of *block* to split.

    Raises:
        UsageError: one has a size that does not divide.
    """
    found = {}
    for path, module in block.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Linear) and name in COLUMNS | ROWS:
            extent = module.out_features if name in COLUMNS else module.in_features
            if extent % ranks:
                raise UsageError(f"--tp {ranks}: {path} has {extent} columns or rows, which do not divide")
            found[path] = module
    return found
