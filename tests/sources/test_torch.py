"""Captured steps against real ones: the same ops, and to the byte the same live storages between any two of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import architectures_learning  # noqa: E402, F401
from architectures import PLAIN, Case  # noqa: E402
from architectures_hf import TRANSFORMERS  # noqa: E402
from architectures_more import MORE  # noqa: E402
from exhaustive import only  # noqa: E402
from live_storages import Boundary, count  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.sources.torch.capture import capture  # noqa: E402


def boundaries(graph: gs.Graph) -> list[Boundary]:
    """Live bytes before and after each op that PyTorch dispatches, as the graph has them."""
    ranges = gs.simulate(graph).live_ranges
    after = ranges.sum_over_time(ranges.nbytes)
    born = np.zeros(len(after), dtype=np.int64)
    made = ~ranges.source
    np.add.at(born, ranges.begin[made], ranges.nbytes[made])
    return [
        Boundary(op.kind, int(now - new), int(now))
        for op, now, new in zip(graph.ops, after.tolist(), born.tolist(), strict=True)
        if op.kind not in ("hold", "update_running_stats")
    ]


def batch_tensors(batch: Any) -> Iterator[torch.Tensor]:
    values = batch.values() if isinstance(batch, Mapping) else batch
    return (value for value in values if isinstance(value, torch.Tensor))


def plain_step(model, batch, optimizer):
    optimizer.zero_grad(set_to_none=True)
    loss = forward(model, batch)
    loss.backward()
    optimizer.step()


def forward(model, batch):
    output = model(**batch) if isinstance(batch, Mapping) else model(*batch)
    if isinstance(output, torch.Tensor):
        return output
    return output["loss"]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-3)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3, foreach=False)


def check(case: Case, optimizer: Any = adam, step: Any = None) -> None:
    """Compare both captured steps with both real ones."""
    model, batch = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captured = capture(model, batch, optimizer=optimizer, loss=None, step=step)
        trained = [p for p in model.parameters() if p.requires_grad]
        existing = [*model.parameters(), *model.buffers(), *batch_tensors(batch)]
        used = optimizer(trained)
        existing += [t for state in used.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        real = count(lambda: (step or plain_step)(model, batch, used), existing)
    for first, expected in zip((True, False), real, strict=True):
        compare(boundaries(captured.graph(first=first)), expected)


def compare(ours: list[Boundary], real: list[Boundary]) -> None:
    assert [a.op for a in ours if not a.op.endswith("_")] == [
        b.op for a, b in zip(ours, real, strict=False) if not a.op.endswith("_")
    ]
    different = [(i, a, b) for i, (a, b) in enumerate(zip(ours, real, strict=True)) if a.before != b.before]
    assert not different, different[:3]
    # What is in place when nobody observes needs less while it runs.
    different = [
        (i, a, b) for i, (a, b) in enumerate(zip(ours, real, strict=True)) if a.op == b.op and a.after != b.after
    ]
    assert not different, different[:3]


KINDS = [
    "mlp", "cnn", "lstm", "graph_network", "torch_transformer",
    "checkpoint_reentrant", "autocast", "tied_and_frozen",
]  # fmt: skip
FAMILIES = ["bert", "gpt2", "llama", "mixtral", "t5", "vit", "wav2vec2"]

VARIED = [
    "RegionHead", "CapacityExperts", "RoutedExperts", "Tagger", "Quantizer", "Flow", "Adversary", "DeepQ", "SoftActor",
    "Prompted", "TwoTowers", "Triplets", "Redundancy", "Isomorphism", "GraphAttention", "PointCloud", "Factorization",
]  # fmt: skip


@pytest.mark.parametrize("name", only(KINDS, PLAIN))
def test_plain_modules_are_exact(name):
    torch.manual_seed(0)
    check(PLAIN[name]())


OTHERWISE = ("Radiance",)
"""Models whose products PyTorch differentiates otherwise while a mode observes: see test_torch_unobserved."""


@pytest.mark.parametrize("name", only(VARIED, [name for name in MORE if name not in OTHERWISE]))
def test_more_architectures_are_exact(name):
    torch.manual_seed(0)
    check(MORE[name](), optimizer=sgd)


@pytest.mark.parametrize("name", only(FAMILIES, TRANSFORMERS))
def test_transformers_are_exact(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    check(TRANSFORMERS[name](), optimizer=sgd)
