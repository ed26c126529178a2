"""Plans that run: ResNet-50, GPT-2, a U-Net and Llama blocks, trained by a plan beside plain PyTorch, on the CPU.

    python bench/planned_steps.py [--models resnet,gpt2] [--shares 0.8,0.6] [--small]     # some minutes a model

For each plan: its peak, the peak that the profiler sees of the whole step, the compute it costs extra, and whether
gradients, loss and buffers are those of the plain step to the bit. Fails where they are not, or the peak is more than
2 % above the plan's. What a capture of the plain step misses (scratch of oneDNN) is left out, as it is without a plan.
"""

from __future__ import annotations

import argparse
import gc
import sys
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
from graphsim.emit.capture import captured_source
from graphsim.emit.planned import planned_step
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies.auto import Auto
from graphsim.sources import source_of
from graphsim.step.training import Training
from graphsim.units import format_bytes

SIZES = {
    "resnet": {"batch": 16, "width": 64, "depths": (3, 4, 6, 3), "pixels": 224},
    "gpt2": {"batch": 4, "layers": 12, "width": 768, "vocabulary": 50257, "length": 512},
    "unet": {"batch": 1, "width": 64, "depth": 4, "pixels": 256},
    "llama": {"batch": 1, "layers": 4, "width": 2048, "length": 512},
}


def real_resnet():
    return planned_models.resnet(**SIZES["resnet"])


def real_gpt2():
    return planned_models.gpt2(**SIZES["gpt2"])


def real_unet():
    return planned_models.unet(**SIZES["unet"])


def real_llama():
    return planned_models.llama(**SIZES["llama"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(SIZES))
    parser.add_argument("--shares", default="0.8,0.6")
    parser.add_argument("--seconds", type=float, default=45, help="for each plan")
    parser.add_argument("--small", action="store_true", help="the sizes of the tests")
    options = parser.parse_args()
    module = "planned_models:" if options.small else f"{Path(__file__).stem}:real_"
    print("| model | ops | budget | plan | measured | compute | ops again | equal |\n|---|" + "---:|" * 7)
    good = True
    for name in options.models.split(","):
        training = Training(optimizer="sgd", target="cpu")
        graph = captured_source(source_of(f"torch:{module}{name}"), training).graph
        make = getattr(planned_models, name) if options.small else globals()[f"real_{name}"]
        plain, eager = trained(make, graph, None)
        missed = max(0, plain - simulate(graph).peak)
        for share in map(float, options.shares.split(",")):
            plan = make_plan(graph, Auto(seconds=options.seconds), int(share * simulate(graph).peak))
            peak, planned = trained(make, graph, plan.schedule)
            equal = all(torch.equal(planned[key], eager[key]) for key in eager)
            good &= equal and peak - missed <= 1.02 * plan.peak_bytes
            cells = [name, f"{len(graph.ops):,}", f"{share:.1f}x" + ("" if plan.feasible else ", does not fit")]
            cells += [format_bytes(plan.peak_bytes), format_bytes(peak - missed), f"{plan.overhead:+.2%}"]
            print(
                "| " + " | ".join([*cells, f"{plan.schedule.repeats.sum():,}", "yes" if equal else "NO"]) + " |",
                flush=True,
            )
    sys.exit(not good)


def trained(make, graph: Graph, schedule: Schedule | None) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the peak of a step, and its loss, gradients and state."""
    found: dict[str, torch.Tensor] = {}

    def run() -> None:
        torch.manual_seed(0)
        model, batch = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False)
        step = schedule and planned_step(model, loss_of, [batch], graph, schedule)
        gc.collect()
        with record_function("##step"):
            if step:
                loss = step(batch)
            else:
                loss = loss_of(model, batch)
                loss.backward()
            optimizer.step()
        found.update({path: p.grad for path, p in model.named_parameters()})
        found.update({f"{path}, after": tensor for path, tensor in model.state_dict().items()}, loss=loss.detach())

    peak = measure(run)["step"].peak
    return peak, {name: tensor.clone() for name, tensor in found.items()}


def loss_of(model, batch):
    return model(batch).mean()


if __name__ == "__main__":
    main()
