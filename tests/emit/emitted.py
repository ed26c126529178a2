"""Plans written for the small models, and these models trained for real."""

from __future__ import annotations

import gc
import importlib.util
from functools import cache

import emitted_models
import torch
from torch.profiler import record_function
from torch_memory import measure

from graphsim.core.simulation import simulate
from graphsim.emit import emit_plan, emit_within
from graphsim.emit.capture import captured_source
from graphsim.options import configure
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies import STRATEGIES
from graphsim.sources import source_of
from graphsim.step.training import Training


@cache
def captured(model: str):
    return captured_source(source_of(f"torch:emitted_models:{model}"), Training(optimizer="sgd", target="cpu"))


@cache
def emission(model: str, strategy: str, share: float = 0.75):
    source = captured(model)
    if strategy == "auto":
        return emit_within(source, int(share * simulate(source.graph).peak))
    return emit_plan(source, make_plan(source.graph, configure(STRATEGIES[strategy], ""), _budget(source, strategy)))


def _budget(source, strategy):
    if strategy != "greedy":
        return None
    return int(0.9 * simulate(source.graph).peak)


def load(text: str, folder):
    """Import *text* as a user would, in a module of its own."""
    path = folder / "checkpoint_plan.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("checkpoint_plan", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step(model, inputs):
    model.zero_grad(set_to_none=True)
    loss = model(inputs).mean()
    loss.backward()


def trained(name: str, apply=None):
    """Two steps from one seed; return gradients and state."""
    torch.manual_seed(0)
    model, inputs = getattr(emitted_models, name)()
    if apply:
        assert apply(model) is model
    for _ in range(2):
        step(model, inputs)
    return {key: p.grad for key, p in model.named_parameters()}, model.state_dict()


def real_peak(name: str, apply) -> int:
    """Bytes at the peak of the second step, by the record of every malloc and free of PyTorch's allocator."""

    def run() -> None:
        torch.manual_seed(0)
        model, inputs = getattr(emitted_models, name)()
        apply(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False)
        for number in range(2):
            with record_function(f"##{number}"):
                optimizer.zero_grad(set_to_none=True)
                loss = model(inputs).mean()
                loss.backward()
                optimizer.step()
            gc.collect()

    return measure(run)["1"].peak
