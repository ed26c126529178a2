"""PyTorch's activation_memory_budget with its own solver and with ours, on joint graphs of an MLP, a CNN and a GPT.

    python bench/compile_budget.py              # all models; no GPU and no memory: fake tensors
    python bench/compile_budget.py mlp gpt      # some

For each setting: bytes saved for the backward pass, its true peak, and its GFLOPs, counted over the backward graph
that the partitioner returns, by code that shares nothing with the solver. Exits with 1 if at any setting ours peaks
higher or computes more than PyTorch's default solver, if a larger budget costs more, or if the solver's own prediction
differs. Needs the extra 'torch'.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import operator
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._functorch import config
from torch._functorch.aot_autograd import aot_module_simplified
from torch._functorch.compilers import nop
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import flop_registry

from graphsim.torch_compile import PeakSolver

SETTINGS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
MIB = 2**20


class MLP(nn.Sequential):
    def __init__(self, activation: type[nn.Module], layers: int = 32, width: int = 1024) -> None:
        blocks = (module for _ in range(layers) for module in (nn.Linear(width, width), activation()))
        super().__init__(*list(blocks)[:-1])


class ConvBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))))


class ResConv(nn.Module):
    def __init__(self, blocks: int = 16, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ConvBlock(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, sequence, width = x.shape
        split = (t.view(batch, sequence, self.heads, -1).transpose(1, 2) for t in self.qkv(x).split(width, 2))
        query, key, value = split
        scores = query @ key.transpose(2, 3) / (width // self.heads) ** 0.5
        mask = torch.ones(sequence, sequence, dtype=torch.bool, device=x.device).tril()
        probabilities = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return self.out((probabilities @ value).transpose(1, 2).reshape(batch, sequence, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(
        self, layers: int, width: int = 768, heads: int = 12, tokens: int = 50257, positions: int = 512
    ) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(tokens, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device)))
        return functional.cross_entropy(self.head(self.norm(x))[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Scalar(nn.Module):
    """Returns a tuple with one scalar, as the tracer asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(x).sum(),)


class Case(NamedTuple):
    what: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], torch.Tensor]
    times_lower_at_a_tenth: float = 1.0


CASES = {
    "mlp": Case("MLP, 32 x 1024, GELU, batch 4096", lambda: MLP(nn.GELU), lambda: torch.randn(4096, 1024), 2.5),
    "relu": Case("MLP, 32 x 1024, ReLU, batch 4096", lambda: MLP(nn.ReLU), lambda: torch.randn(4096, 1024)),
    "conv": Case("ResConv16, 64 channels, batch 64 of 32 x 32", ResConv, lambda: torch.randn(64, 3, 32, 32)),
    "gpt": Case("GPT, 4 layers of GPT-2's, 8 x 512", lambda: GPT(4), lambda: torch.randint(0, 50257, (8, 512))),
    "gpt2": Case("GPT-2 small, 12 layers, 8 x 512", lambda: GPT(12), lambda: torch.randint(0, 50257, (8, 512))),
}


class Backward(NamedTuple):
    """Of one backward graph: bytes saved for it, bytes at its true peak, floating point operations."""

    saved: int
    peak: int
    flops: int
    seconds: float


def backward(case: Case, solver: Any, budget: float) -> Backward:
    """Return what the partitioner makes of *case* under *solver* and *budget*."""
    found: list[Backward] = []

    def partition(joint: fx.GraphModule, inputs: Any, **options: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        placeholders = joint.graph.find_nodes(op="placeholder")
        outside = {key: size for node in placeholders if "tangents" not in node.name for key, size in storages(node)}
        began = time.perf_counter()
        both = min_cut_rematerialization_partition(joint, inputs, **options)
        found.append(Backward(*count(list(both[1].graph.nodes), outside), time.perf_counter() - began))
        return both

    config.activation_memory_budget, config.activation_memory_budget_solver = budget, solver
    with FakeTensorMode():
        options = {"fw_compiler": nop, "bw_compiler": nop, "partition_fn": partition}
        aot_module_simplified(Scalar(case.model()), (case.inputs(),), **options)
    return found[0]


def count(nodes: list[fx.Node], outside: dict[int, int]) -> tuple[int, int, int]:
    """Return saved bytes, true peak and operations of a backward graph run in this order.

    A storage lives from the op that makes it to the last that reads it; those *outside*, the parameters and inputs of
    the step with their bytes, always live; saved values live from the beginning and gradients to the end.
    """
    birth: dict[tuple[str, int], int] = {}
    last: dict[tuple[str, int], int] = {}
    size: dict[tuple[str, int], int] = {}
    values: dict[fx.Node, dict[int, tuple[str, int]]] = {}
    saved = 0
    for time_, node in enumerate(nodes):
        inherited = {key: value for source in node.all_input_nodes for key, value in values[source].items()}
        values[node] = {}
        for key, nbytes in storages(node):
            value = inherited.get(key, ("placeholder" if node.op == "placeholder" else node.name, key))
            values[node][key] = value
            if value not in birth and not (value[0] == "placeholder" and key in outside):
                birth[value] = last[value] = -1 if node.op == "placeholder" else time_
                size[value] = nbytes
                saved += nbytes * (node.op == "placeholder" and "tangents" not in node.name)
        if node.target is not operator.getitem:
            last |= {value: time_ for value in inherited.values() if value in birth}
    change = [0] * (len(nodes) + 2)
    for value in birth:
        change[birth[value] + 1] += size[value]
        change[last[value] + 2 if last[value] < len(nodes) - 1 else -1] -= size[value]
    peak = max(itertools.accumulate(change))
    return saved, peak + sum(outside.values()), sum(map(flops, nodes))


def storages(node: fx.Node) -> list[tuple[int, int]]:
    """Return key and bytes of each storage of the node's value."""
    value = node.meta.get("val")
    tensors = [t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, torch.Tensor)]
    return [(t.untyped_storage()._cdata, t.untyped_storage().nbytes()) for t in tensors]


def flops(node: fx.Node) -> int:
    """Return the floating point operations of a node, by torch.utils.flop_counter."""
    packet = getattr(node.target, "_overloadpacket", None)
    if packet not in flop_registry:
        return 0
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    return flop_registry[packet](*args, **kwargs, out_val=node.meta["val"])


def compare(case: Case) -> list[str]:
    """Print the table of one case and return what misses the bar."""
    told = _Told()
    print(f"\n{case.what}\n{'':>8}{'PyTorch (dp)':>30}{'PeakSolver':>30}")
    print("budget" + 2 * f"{'saved':>12}{'peak':>9}{'GFLOP':>9}" + f"{'peak':>11}{'seconds':>10}")
    missed: list[str] = []
    before: Backward | None = None
    for budget in SETTINGS:
        stock, ours = backward(case, "dp", budget), backward(case, PeakSolver(), budget)
        numbers = "".join(f"{b.saved / MIB:>8.0f} MiB{b.peak / MIB:>9.0f}{b.flops / 1e9:>9.0f}" for b in (stock, ours))
        times = stock.peak / ours.peak
        print(f"{budget:>6}{numbers}{times:>8.2f} x{ours.seconds:>8.1f} s", flush=True)
        missed += [f"{budget}: higher peak"] * (ours.peak > stock.peak)
        missed += [f"{budget}: more operations"] * (ours.flops > stock.flops)
        missed += [f"{budget}: not {case.times_lower_at_a_tenth} x lower"] * (
            budget == 0.1 and times < case.times_lower_at_a_tenth
        )
        missed += [f"{budget}: cheaper or larger than a larger budget"] * (
            before is not None and (ours.flops < before.flops or ours.peak > before.peak)
        )
        missed += [f"{budget}: predicted {peak:,}, is {ours.peak:,}" for peak in told.peaks() if peak != ours.peak]
        before = ours
    return [f"{case.what} at {line}" for line in missed]


class _Told(logging.Handler):
    """Hears the peaks that the solver predicts."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: list[int] = []
        log = logging.getLogger("graphsim.torch_compile.solver")
        log.setLevel(logging.INFO)
        log.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record.peak_bytes)  # type: ignore[attr-defined]

    def peaks(self) -> Iterator[int]:
        while self._heard:
            yield self._heard.pop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="default: all")
    chosen = parser.parse_args().cases or list(CASES)
    missed = [line for name in chosen for line in compare(CASES[name])]
    print("\n" + ("\n".join(missed) or "At every setting: no higher peak, no more operations, and monotone."))
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
