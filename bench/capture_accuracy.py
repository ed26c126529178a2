"""Captured steps against the profiler: the reference rows, each captured from the real model class.

    python bench/capture_accuracy.py              # every row of tests/data/measured_peaks_cpu.csv
    python bench/capture_accuracy.py --only gpt2

Exits with 1 if a peak is off by more than 0.1 %. Needs the extra 'test'. The rows are repeated by
``bench/accuracy.py``, which measures them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from typing import Any

from accuracy import WITHIN, Case, _optimizer, reference

import graphsim as gs

BAR = 0.001


def predict(case: Case) -> dict[str, int]:
    """Return the peaks of *case* as its captured graphs have them, in bytes."""
    import torch
    from torch_truth import build, resnet50, vgg16

    from graphsim.sources.torch.capture import capture

    name, options = _optimizer(case.optimizer)
    inputs: Any
    if case.model in ("vgg16", "resnet50"):
        factory: Any = vgg16 if case.model == "vgg16" else resnet50
        inputs = lambda: [torch.randn(case.batch, 3, 224, 224), torch.randint(0, 1000, (case.batch,))]  # noqa: E731
        step = classifier_step
    else:
        factory = lambda: build(case.model, case.batch, case.sequence, "sdpa", None)[0]  # noqa: E731
        inputs = lambda: build(case.model, case.batch, case.sequence, "sdpa", None)[1]  # noqa: E731
        step = vision_step if case.model == "vit_b" else language_step
    kind = getattr(torch.optim, name)
    captured = capture(
        factory, inputs, optimizer=lambda parameters: kind(parameters, lr=1e-3, **options), loss=None, step=step
    )
    first, steady = gs.simulate(captured.graph(first=True)), gs.simulate(captured.graph())
    phases = steady.phase_peaks()
    return {
        "forward_end_first": first.phase_end_bytes(gs.Phase.FORWARD),
        "peak_first": first.peak,
        "forward_peak_steady": phases["forward"],
        "backward_peak_steady": phases["backward"],
        "optimizer_peak_steady": phases["optimizer"],
        "peak_steady": steady.peak,
    }


def classifier_step(model: Any, batch: Any, optimizer: Any) -> None:
    import torch

    run(optimizer, lambda: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]))


def vision_step(model: Any, batch: Any, optimizer: Any) -> None:
    run(optimizer, lambda: model(pixel_values=batch[0], labels=batch[1]).loss)


def language_step(model: Any, batch: Any, optimizer: Any) -> None:
    run(optimizer, lambda: model(input_ids=batch[0], attention_mask=batch[2], labels=batch[1]).loss)


def run(optimizer: Any, forward: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss = forward()
    loss.backward()
    optimizer.step()


def main() -> int:
    """Print measured and captured peaks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only models of this name")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    worst = 0.0
    for case, measured in reference():
        if options.only and case.model != options.only:
            continue
        predicted = predict(case)
        print(case.model, case.batch, case.optimizer)
        for key in WITHIN:
            if key in measured:
                error = predicted[key] / measured[key] - 1
                worst = max(worst, abs(error))
                print(f"    {key:24} measured {measured[key]:>14,}  captured {predicted[key]:>14,}  {error:+.4%}")
    print(f"\nworst error {worst:.4%} (bar {BAR:.1%})")
    return 0 if worst <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
