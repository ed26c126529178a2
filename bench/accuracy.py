"""Predicted against measured: every row of the reference table, and as many others as you ask for.

    python bench/accuracy.py              # the reference rows, measured now
    python bench/accuracy.py --more       # other batches, sequences, optimizers, kernels, dropout off
    python bench/accuracy.py --recorded   # the recorded figures instead of a new measurement

Needs the extra 'test' (PyTorch and transformers) unless --recorded. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import graphsim as gs

TABLE = Path(__file__).parent.parent / "tests" / "data" / "measured_peaks_cpu.csv"
SPECS = {"vgg16": "vgg16", "resnet50": "resnet50", "gpt2": "gpt2", "bert": "bert_base", "vit_b": "vit_b16"}
EXACT = ("parameter_bytes", "buffer_bytes", "input_bytes")
WITHIN = (
    "forward_end_first",
    "peak_first",
    "forward_peak_steady",
    "backward_peak_steady",
    "optimizer_peak_steady",
    "peak_steady",
)


class Case(NamedTuple):
    """One configuration of one model."""

    model: str
    batch: int
    sequence: int
    optimizer: str
    attention: str = ""
    dropout: float | None = None


MORE = (
    *(Case("vgg16", b, 0, "SGD(foreach=False)") for b in (1, 4, 8)),
    Case("vgg16", 3, 0, "SGD(foreach=False)", dropout=0.0),
    Case("vgg16", 2, 0, "RMSprop(foreach=False)"),
    *(Case("resnet50", b, 0, "AdamW(foreach=False)") for b in (1, 2, 8, 16)),
    Case("resnet50", 4, 0, "SGD(momentum=0.9, nesterov=True, foreach=True)"),
    Case("resnet50", 4, 0, "Adam(amsgrad=True, foreach=False)"),
    Case("gpt2", 2, 64, "SGD(foreach=False)"),
    Case("gpt2", 2, 256, "AdamW(foreach=False)"),
    Case("gpt2", 1, 128, "SGD(foreach=False)", attention="eager"),
    Case("gpt2", 2, 256, "SGD(foreach=False)", dropout=0.0),
    Case("gpt2", 1, 128, "Adagrad(foreach=False)", attention="eager", dropout=0.0),
    Case("gpt2", 1, 512, "Adam(fused=True)"),
    Case("bert", 1, 512, "SGD(foreach=False)"),
    Case("bert", 8, 64, "Adam(foreach=True)"),
    Case("bert", 4, 128, "SGD(foreach=False)", attention="eager"),
    Case("bert", 4, 128, "SGD(foreach=False)", dropout=0.0),
    Case("vit_b", 4, 0, "SGD(foreach=False)"),
    Case("vit_b", 2, 0, "AdamW(foreach=False)", attention="eager"),
    Case("vit_b", 8, 0, "SGD(foreach=False)", dropout=0.0),
)


def reference() -> Iterator[tuple[Case, dict[str, int]]]:
    """Yield the recorded rows."""
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            case = Case(row["model"], int(row["batch"]), int(row["sequence"] or 0), row["optimizer"])
            yield case, {key: int(row[key]) for key in (*EXACT, *WITHIN) if row[key]}


def measure(case: Case) -> dict[str, int]:
    """Measure *case* in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps(case)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def _measure_here(case: Case) -> dict[str, int]:
    import torch
    from torch_truth import measure as truth

    name, options = _optimizer(case.optimizer)
    kind = getattr(torch.optim, name)
    return truth(
        case.model,
        case.batch,
        case.sequence,
        lambda parameters: kind(parameters, lr=1e-3, **options),
        attention=case.attention or "sdpa",
        dropout=case.dropout,
    )


def _optimizer(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of ``SGD(momentum=0.9, foreach=False)``."""
    name, inside = re.fullmatch(r"(\w+)\((.*)\)", text).groups()  # type: ignore[union-attr]
    options = dict(part.split("=") for part in inside.replace(" ", "").split(",") if part)
    return name, {key: json.loads(value.lower()) for key, value in options.items()}


def predict(case: Case) -> dict[str, int]:
    """Return the same columns as graphsim predicts them."""
    params: dict[str, Any] = {"batch": case.batch}
    if case.sequence:
        params["seq"] = case.sequence
    if case.attention:
        params["attention"] = case.attention
    if case.dropout is not None:
        params["dropout"] = case.dropout
    name, options = _optimizer(case.optimizer)
    if options.get("momentum"):
        name = "nesterov" if options.get("nesterov") else "momentum"
    if options.get("amsgrad"):
        name = "amsgrad"
    implementation = "fused" if options.get("fused") else "foreach" if options.get("foreach") else "forloop"
    graph = gs.load(SPECS[case.model], **params)
    report = gs.peak(graph, optimizer=name.lower(), optimizer_impl=implementation, target="cpu")
    phases = report.steady.phase_peak_bytes
    return {
        "parameter_bytes": report.parameter_bytes,
        "buffer_bytes": report.buffer_bytes,
        "input_bytes": report.input_bytes,
        "forward_end_first": report.first.forward_end_bytes,
        "peak_first": report.first.peak_bytes,
        "forward_peak_steady": phases["forward"],
        "backward_peak_steady": phases["backward"],
        "optimizer_peak_steady": phases["optimizer"],
        "peak_steady": report.steady.peak_bytes,
    }


def main() -> int:
    """Print the table of errors; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--more", action="store_true", help="measure other configurations instead")
    parser.add_argument("--recorded", action="store_true", help="use the recorded figures of the reference rows")
    parser.add_argument("--only", default="", help="only models of this name")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure_here(Case(*json.loads(options.measure)))))
        return 0
    cases = ((case, None) for case in MORE) if options.more else reference()
    worst, steady, wrong = 0.0, [], 0
    for case, recorded in cases:
        if options.only and case.model != options.only:
            continue
        measured = recorded if recorded and options.recorded else measure(case)
        predicted = predict(case)
        wrong += sum(predicted[key] != measured[key] for key in EXACT)
        errors = {key: predicted[key] / measured[key] - 1 for key in WITHIN if key in measured}
        worst = max(worst, *(abs(error) for error in errors.values()))
        steady.append(abs(errors["peak_steady"]))
        print(" ".join(str(part) for part in case if part not in ("", None)))
        for key, error in errors.items():
            print(f"    {key:24} measured {measured[key]:>14,}  predicted {predicted[key]:>14,}  {error:+.4%}")
        for key in EXACT:
            if predicted[key] != measured[key]:
                print(f"    {key:24} measured {measured[key]:>14,}  predicted {predicted[key]:>14,}  NOT EQUAL")
    mean = sum(steady) / max(1, len(steady))
    print(f"\n{len(steady)} rows: worst error {worst:.4%} (bar 0.5 %), mean of peak_steady {mean:.4%} (bar 0.2 %)")
    return 0 if worst <= 0.005 and mean <= 0.002 and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
