"""Plans that run: ResNet-50, GPT-2, a U-Net and Llama blocks, trained by emitted plans and by plain PyTorch.

    python bench/planned_steps.py [--models resnet,gpt2] [--shares 0.8,0.6,least] [--size small|middle|full]

For each plan, as `graphsim plan --emit torch` writes it: its peak, the peak that the profiler sees of the whole step,
the compute it costs extra, the ops that run again, the seconds of a step beside those of the plain one, and whether
gradients, loss and buffers are those of the plain step to the bit. `least` is the smallest peak that the greedy search
reaches. Fails where a plan fits and the step is not the same, or its peak is more than 2 % above the plan's. What a
capture of the plain step misses (scratch of oneDNN) is left out, as it is without a plan.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.profiler import record_function

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "emit"))

import planned_models
from torch_memory import measure

from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import simulate
from graphsim.emit.capture import captured_source, executed
from graphsim.emit.step import emit_step
from graphsim.recompute.case import Case
from graphsim.recompute.emittable import make_emittable
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.plan import Plan
from graphsim.recompute.strategies.auto import Auto
from graphsim.sources import source_of
from graphsim.step.training import Training
from graphsim.units import format_bytes

SIZES = {
    "small": {"resnet": {}, "gpt2": {}, "unet": {}, "llama": {}},
    "middle": {
        "resnet": {"batch": 8, "width": 32, "depths": (3, 4, 6, 3), "pixels": 160},
        "gpt2": {"batch": 8, "layers": 12, "width": 256, "vocabulary": 2048, "length": 256},
        "unet": {"batch": 4, "width": 32, "depth": 4, "pixels": 128},
        "llama": {"batch": 4, "layers": 4, "width": 512, "length": 512},
    },
    "full": {
        "resnet": {"batch": 8, "width": 64, "depths": (3, 4, 6, 3), "pixels": 224},
        "gpt2": {"batch": 2, "layers": 12, "width": 768, "vocabulary": 50257, "length": 512},
        "unet": {"batch": 1, "width": 64, "depth": 4, "pixels": 256},
        "llama": {"batch": 1, "layers": 4, "width": 2048, "length": 1024},
    },
}
"""Of the tests; of the models' depth on two cores, some minutes each; of the models themselves."""


def made(name: str, size: str):
    """Return the model and its batch: what graphsim captures as ``torch:planned_steps:made``."""
    return getattr(planned_models, name)(**SIZES[size][name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(SIZES["small"]))
    parser.add_argument("--shares", default="0.8,0.6,least")
    parser.add_argument("--seconds", type=float, default=20, help="for each plan")
    parser.add_argument("--size", choices=SIZES, default="middle")
    options = parser.parse_args()
    print("| model | ops | budget | plan | measured | without | compute | ops again | CPU seconds | equal |")
    print("|---|" + "---:|" * 9)
    good = True
    for name in options.models.split(","):
        source = source_of("torch:planned_steps:made", name=name, size=options.size)
        captured = captured_source(source, Training(optimizer="sgd", target="cpu"))
        make = partial(made, name, options.size)
        stored = simulate(captured.graph).peak
        plain, seconds, eager = trained(make, None)
        for share in options.shares.split(","):
            emitted = emit_step(captured, plan_of(captured.graph, share, options.seconds))
            plan, again, budget = emitted.plan, sum(emitted.again.values()), emitted.plan.budget or 0
            peak, longer, planned = trained(make, executed(emitted.text)["step"])
            peak -= max(0, plain - stored)
            equal = planned.keys() == eager.keys() and all(torch.equal(planned[key], eager[key]) for key in eager)
            good &= equal and peak <= 1.02 * plan.peak_bytes
            cells = [name, f"{len(captured.graph.ops):,}", f"{budget / stored:.2f}x" + " (least)" * (share == "least")]
            cells[-1] += "" if plan.feasible else ", does not fit"
            cells += [format_bytes(plan.peak_bytes), format_bytes(peak), format_bytes(stored), f"{plan.overhead:+.2%}"]
            cells += [f"{again:,}", f"{longer:.1f} ({seconds:.1f})", "yes" if equal else "NO"]
            print("| " + " | ".join(cells) + " |", flush=True)
    sys.exit(not good)


def plan_of(graph: Graph, share: str, seconds: float) -> Plan:
    """Return `auto`'s plan within a share of the peak; of the least peak, the greedy plan where `auto` finds none."""
    if share != "least":
        return make_emittable(graph, Auto(seconds=seconds), int(float(share) * simulate(graph).peak))
    least = make_emittable(graph, least_schedule)
    plan = make_emittable(graph, Auto(seconds=seconds), least.peak_bytes)
    return plan if plan.feasible else replace(least, budget=least.peak_bytes)


def least_schedule(case: Case, budget: int | None = None) -> Schedule:
    """Return the schedule of the smallest peak that the greedy search reaches."""
    return case.problem.schedule(repair(case.program_order, case.memory_bound).nodes)


def trained(make, step) -> tuple[int, float, dict[str, torch.Tensor]]:
    """Return the peak of a training step, its CPU seconds, and its loss, gradients and state."""
    found: dict[str, torch.Tensor] = {}
    seconds = 0.0

    def run() -> None:
        nonlocal seconds
        torch.manual_seed(0)
        model, batch = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False)
        gc.collect()
        begin = time.process_time()
        with record_function("##step"):
            if step:
                loss = step(model, batch)
            else:
                loss = model(batch).mean()
                loss.backward()
            optimizer.step()
        seconds = time.process_time() - begin
        found.update({path: p.grad for path, p in model.named_parameters()})
        found.update({f"{path}, after": tensor for path, tensor in model.state_dict().items()}, loss=loss.detach())

    peak = measure(run)["step"].peak
    return peak, seconds, {name: tensor.clone() for name, tensor in found.items()}


if __name__ == "__main__":
    main()
