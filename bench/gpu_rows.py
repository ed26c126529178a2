"""Published measurements on GPUs against captures for CUDA, on any machine.

    python bench/gpu_rows.py FILE.csv [--only SOURCE] [--quiet]
    python bench/gpu_rows.py bench/results/record-*.jsonl.gz

The second form says of records of gpu_record.py event by event where a prediction leaves them (record_compare.py).
FILE: rows of (source, model, config, card, kind, measured_bytes), or the table of tests/data/measured_peaks_gpu.csv.
The step of a row is rebuilt from its source's public script (workloads_liger.py, workloads_training.py) and captured
for its card; its trace runs through the model of PyTorch's caching allocator, after that of step 1. Prints each row,
the cheap ones first, and for each source the number of rows, median and worst error, and the share within 1 and 3 %;
names every row that is not covered, with the reason. What is compared with what is measured:

- allocated, reserved: max_memory_allocated and max_memory_reserved of a steady step, to the byte;
- nvidia-smi, NVML: reserved, and the context that the row states. Where a row states none, or the step convolves, what
  cuDNN's workspaces and the context take is not known: such a row counts as right where the measured value lies between
  the least and the most (graphsim.core.context, graphsim.answers.unknown);
- embedding (Liger-Kernel): those rows begin with memory left over by the benchmark, the same for all: the first one
  says how much, and is not judged.

The T4 rows are labelled autocast fp16, but ran in bf16: the script that made them (torch-preflight,
tests/calibration/measure_cuda.py) takes bf16 where `torch.cuda.is_bf16_supported()`, and PyTorch says yes on a T4, as
it counts emulation. Exits with 1 if an allocated peak is off by more than 2 % or a reserved one by more than 5 %.
Needs the extra 'test'.
"""

from __future__ import annotations

import argparse
import csv
import logging
import re
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MIB = 2**20
LIMITS = {"allocated": 0.02, "reserved": 0.05}
COSTLY = ("xMem LLM", "xMem", "GPUMemNet", "torch-preflight")
"""Sources whose captures take longest, last ones first."""


class Row(NamedTuple):
    """One published figure."""

    source: str
    model: str
    config: str
    card: str
    kind: str
    measured: int


class Verdict(NamedTuple):
    """What is predicted for a row: from *least* to *most* bytes, equal where nothing is unknown; or why nothing is."""

    row: Row
    least: int = 0
    most: int = 0
    reason: str = ""

    @property
    def error(self) -> float:
        """The distance of what was measured from what is predicted, relative; 0 inside of a range."""
        nearest = min(max(self.row.measured, self.least), self.most)
        return nearest / self.row.measured - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path, nargs="+", help="a table, or records")
    parser.add_argument("--only", default="", help="sources that begin so")
    parser.add_argument("--quiet", action="store_true", help="the summary alone")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if any(path.suffix == ".gz" for path in options.rows):
        from record_compare import report

        return int(bool(report(options.rows)))
    rows = [row for path in options.rows for row in read(path) if row.source.startswith(options.only)]
    verdicts = []
    for verdict in judged(sorted(rows, key=_cost)):
        verdicts.append(verdict)
        if not options.quiet:
            print(shown(verdict), flush=True)
    print("\n".join(["", *summary(verdicts)]))
    wrong = [v for v in verdicts if not v.reason and abs(v.error) > LIMITS.get(v.row.kind, 1)]
    return int(bool(wrong))


# -- rows ------------------------------------------------------------------------------------------


def read(path: Path) -> list[Row]:
    """Return the rows of a file of either form."""
    with path.open(newline="") as file:
        return [row for line in csv.DictReader(file) for row in _rows(line)]


def _rows(line: dict[str, str]) -> Iterator[Row]:
    if "kind" in line:
        named = {name: line[name] for name in ("source", "model", "config", "card", "kind")}
        yield Row(**named, measured=int(line["measured_bytes"]))
        return
    source, model, config = "torch-preflight", line["model"], ""
    if model.startswith("cross_entropy"):
        _, rows, classes, _ = model.split()
        tokens = int(rows.partition("=")[2]) // 8
        source, model, config = "Liger-Kernel", "cross_entropy", f"full V={classes.partition('=')[2]} B=8,T={tokens}"
    else:
        config = f"{line['batch']}x{line['sequence_or_image']} autocast bf16 AdamW {line['software']}"
    for kind in ("allocated", "reserved"):
        if line[f"max_memory_{kind}"]:
            yield Row(source, model, config, line["gpu"], kind, int(line[f"max_memory_{kind}"]))


def _cost(row: Row) -> int:
    """Cheap sources first; in a source the order of the file."""
    return next((len(COSTLY) - n for n, name in enumerate(COSTLY) if row.source.startswith(name)), 0)


# -- predictions -----------------------------------------------------------------------------------


def judged(rows: list[Row]) -> Iterator[Verdict]:
    """Yield a verdict for every row."""
    known: dict[tuple[str, ...], Any] = {}
    left_over: dict[str, int] = {}
    for row in rows:
        key = row[:4]
        try:
            if key not in known:
                known[key] = predict(row)
            least, most = bytes_of(known[key], row)
        except Exception as error:  # a row that cannot be rebuilt is named, and the others go on
            yield Verdict(row, reason=f"{type(error).__name__}: {error}"[:300])
            continue
        if row.model == "embedding":
            first = row.model not in left_over
            left = left_over.setdefault(row.model, row.measured - least)
            least, most = least + left, most + left
            if first:
                yield Verdict(row, reason=f"says what was left over, {left / MIB:,.1f} MiB: the others are compared")
                continue
        yield Verdict(row, least, most)


def predict(row: Row) -> Any:
    """Return the report of the captured step of *row*, and what convolutions may add to live and to reserved bytes."""
    import torch
    from torch import nn

    from graphsim.answers.peak import peak
    from graphsim.answers.unknown import convolution_most
    from graphsim.core.context import CONTEXT
    from graphsim.core.devices import find_device
    from graphsim.core.simulation import simulate
    from graphsim.memory.allocators.torch import TorchCaching
    from graphsim.sources import Steps
    from graphsim.sources.torch.capture import capture

    device = find_device(row.card)
    if device is None:
        raise LookupError(f"the catalogue has no {row.card}")
    calls = workload(row)
    captured = capture(
        nn.Identity(), torch.zeros(0), optimizer=None, loss=None, step=lambda *_: next(calls), device=device
    )
    steps = Steps(captured.graph(first=True), captured.graph())
    runs = simulate(steps.first), simulate(steps.steady)
    limit = f"limit={device.memory - CONTEXT[0]}"  # where it is reached, what is cached is given back
    report = peak(steps, allocator="torch", allocator_options=limit)
    return report, convolution_most(runs), convolution_most(runs, TorchCaching())


def workload(row: Row) -> Iterator[None]:
    """Return the calls of the workload of *row*.

    Raises:
        LookupError: nobody has written it.
    """
    import workloads_liger
    import workloads_training

    if row.source == "Liger-Kernel":
        return workloads_liger.WORKLOADS[row.model](workloads_liger.parse(row.config))
    return workloads_training.SOURCES[row.source](row.model, row.config)


def bytes_of(predicted: Any, row: Row) -> tuple[int, int]:
    """Return the least and the most that should have been measured."""
    from graphsim.core.context import CONTEXT

    report, live, convolutions = predicted
    allocated, reserved = report.steady.allocated_peak_bytes, report.steady.reserved_peak_bytes
    if row.kind == "allocated":
        return allocated, allocated + live
    if row.kind == "reserved":
        return reserved, reserved + convolutions
    stated = re.search(r"context (\d+) MiB", row.kind)
    held = max(reserved, report.first.reserved_peak_bytes)
    if stated:
        beside = int(stated[1]) * MIB
        return held + beside, held + convolutions + (max(beside, CONTEXT[1]) if convolutions else beside)
    return held + CONTEXT[0], held + CONTEXT[1] + convolutions


# -- printing --------------------------------------------------------------------------------------


def shown(verdict: Verdict) -> str:
    """Return one row as a line."""
    row = verdict.row
    line = f"{row.source[:22]:22} {row.model[:28]:28} {row.config[:44]:44} {row.kind[:10]:10} {row.measured:15,}"
    if verdict.reason:
        return f"{line}  not covered: {verdict.reason}"
    spread = f" ... {verdict.most:,}" if verdict.most > verdict.least else ""
    inside = " inside" if spread and not verdict.error else ""
    return f"{line} {verdict.least:15,}{spread} {verdict.error:+8.2%}{inside}"


def summary(verdicts: list[Verdict]) -> Iterator[str]:
    """Yield a table by source and kind, then what is not covered."""
    yield "| source | kind | rows | covered | median | worst | within 1 % | within 3 % |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        ranged = " (range)" if verdict.most > verdict.least else ""
        kind = verdict.row.kind.partition(" (")[0]
        groups.setdefault((verdict.row.source, kind + ranged), []).append(verdict)
    for (source, kind), group in groups.items():
        errors = [abs(v.error) for v in group if not v.reason]
        cells = [f"{len(group)}", f"{len(errors)}"]
        if errors:
            cells += [f"{statistics.median(errors):.2%}", f"{max(errors):.2%}"]
            cells += [f"{sum(e <= bar for e in errors) / len(errors):.0%}" for bar in (0.01, 0.03)]
        else:
            cells += ["", "", "", ""]
        yield f"| {source} | {kind} | " + " | ".join(cells) + " |"
    left = [v for v in verdicts if v.reason]
    yield f"\n{len(verdicts)} rows, {len(verdicts) - len(left)} covered, {len(left)} not:"
    yield from (f"- {v.row.source} {v.row.model} {v.row.config}: {v.reason}" for v in left)


if __name__ == "__main__":
    sys.exit(main())
