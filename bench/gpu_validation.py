"""The GPU validation: predictions against what CuPy's pool and PyTorch's allocator do on a real GPU.

    python bench/gpu_validation.py [--only streams random compute steps speed] [--out bench/results]

Writes one JSON per device, an entry at a time: a run that is interrupted goes on where it stopped, as long
as the commit is the same. Nothing is written that was not measured; what cannot run is listed with its reason.
Needs CuPy and PyTorch built for CUDA; about 8 minutes on one GPU. `--table` prints the results in Markdown.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import graphsim as gs
from graphsim.core.trace import Trace
from graphsim.errors import GraphSimError
from graphsim.measured.backends import BACKENDS
from graphsim.measured.replay import replay_run
from graphsim.memory.allocators import ALLOCATORS
from graphsim.recompute.plan import make_schedule
from graphsim.sources.spec import shipped_specs

PARAMS = {
    "bert_base": {"batch": 8, "seq": 128},
    "bert_large": {"batch": 4, "seq": 128},
    "gpt2": {"batch": 4, "seq": 512},
    "llama3_8b": {"batch": 1, "seq": 256, "layers": 2},
    "mixtral_8x7b": {"batch": 1, "seq": 64, "layers": 1},
}
STEPS = {  # model: (spec, batch, sequence)
    "vgg16": ("vgg16", 32, 0),
    "resnet50": ("resnet50", 32, 0),
    "gpt2": ("gpt2", 4, 512),
    "bert": ("bert_base", 8, 256),
    "vit_b": ("vit_b16", 16, 0),
}
PRECISIONS = ("fp32", "amp-bf16")
OPTIMIZERS = ("sgd", "adam")
EVENTS = 25_000
PARTS = ("streams", "random", "compute", "steps", "speed")


class Results:
    """The JSON of one device: entries by key, saved after each."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {**head, "entries": {}, "skipped": {}}
        if path.exists():
            old = json.loads(path.read_text())
            if old.get("commit") == head["commit"]:
                self.data = {**old, "skipped": {}}

    def run(self, key: str, measure: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> None:
        """Measure one entry unless it is there already; a failure is listed with its reason."""
        if key in self.data["entries"]:
            return
        start = time.perf_counter()
        try:
            entry = measure(*arguments, **options)
        except Exception as error:  # whatever the library raises: it is the finding
            self.data["skipped"][key] = f"{type(error).__name__}: {error}"[:500]
        else:
            self.data["entries"][key] = entry
        self.save()
        print(f"{time.perf_counter() - start:7.1f} s  {key}  {self.summary(key)}", flush=True)

    def summary(self, key: str) -> str:
        """Return the entry in a few words."""
        entry = self.data["entries"].get(key)
        return self.data["skipped"].get(key, "") if entry is None else json.dumps(entry)[:160]

    def save(self) -> None:
        """Write the file whole."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1) + "\n")
        part.replace(self.path)


def step_of(spec: str, *, strategy: str = "none", **training: Any) -> gs.Simulation:
    """Return the simulated step of a shipped spec in the size of this validation."""
    step = gs.training_step(gs.load(spec, **PARAMS.get(spec, {})), **training)
    return gs.simulate(step, make_schedule(step, strategy))


def replayed(spec: str, strategy: str, backend: str, **options: Any) -> dict[str, Any]:
    """Return the replay of a spec's step as plain data."""
    result = asdict(replay_run(step_of(spec, strategy=strategy, optimizer="adamw"), backend, **options))
    for name in ("provenance", "spec", "backend", "device"):
        del result[name]
    return result


def streams(results: Results, backends: list[str]) -> None:
    """Every shipped spec through CuPy's pool, alone and in lock-step, and through PyTorch's allocator."""
    for spec in shipped_specs():
        for strategy in ("none", "sqrt"):
            for backend in backends:
                results.run(f"streams/{spec}/{strategy}/{backend}", replayed, spec, strategy, backend)
        if "cupy" in backends:
            results.run(f"streams/{spec}/lockstep", replayed, spec, "none", "cupy", lockstep=True)


def random_trace(seed: int) -> Trace:
    """EVENTS mallocs and frees around 300 live blocks, at most 16 MiB each."""
    chance = random.Random(seed)
    nbytes, malloc, free, alive = [], [], [], []
    for event in range(EVENTS):
        if alive and chance.random() < len(alive) / 600:
            free[alive.pop(chance.randrange(len(alive)))] = event
        else:
            alive.append(len(nbytes))
            nbytes.append(chance.randrange(1, 1 << chance.choice([9, 14, 20, 24])))
            malloc.append(event)
            free.append(-1)
    sizes, begin, end = (np.array(column, dtype=np.int64) for column in (nbytes, malloc, free))
    nothing = np.full(len(sizes), -1)
    return Trace(tensor=nothing, nbytes=sizes, malloc=begin, free=end, execution=nothing)


def random_streams(results: Results, backends: list[str]) -> None:
    """Random streams: what the allocator models say and what is measured, at every event."""

    def compare(seed: int, backend: str) -> dict[str, Any]:
        trace, plugin = random_trace(seed), BACKENDS[backend]()
        measured, predicted = plugin(trace), ALLOCATORS[plugin.model]()(trace)
        return {
            "events": trace.events_count,
            "matched_used": int((measured.used == predicted.used).sum()),
            "matched_total": int((measured.reserved == predicted.reserved).sum()),
            "predicted_total_bytes": predicted.reserved_peak,
            "measured_total_bytes": measured.reserved_peak,
        }

    for seed in range(4):
        for backend in backends:
            results.run(f"random/{seed}/{backend}", compare, seed, backend)


def compute(results: Results, backends: list[str]) -> None:
    """The time of the arithmetic, with and without recompute."""
    for spec in ("resnet50", "gpt2", "bert_base", "vgg16"):
        for strategy in ("none", "sqrt"):
            for backend in set(backends) & {"cupy", "numpy"}:
                results.run(f"compute/{spec}/{strategy}/{backend}", replayed, spec, strategy, backend, compute=True)


def speed(results: Results, backends: list[str]) -> None:
    """Simulating and allocating a step against its replay."""

    def timed(backend: str) -> dict[str, Any]:
        graph = step_of("gpt2", optimizer="adamw").graph
        start = time.perf_counter()
        trace = gs.simulate(graph).trace
        ALLOCATORS[BACKENDS[backend]().model]()(trace)
        simulated = time.perf_counter() - start
        start = time.perf_counter()
        BACKENDS[backend]()(trace)
        return {"simulate_seconds": simulated, "replay_seconds": time.perf_counter() - start}

    for backend in backends:
        results.run(f"speed/gpt2/{backend}", timed, backend)


def steps(results: Results, backends: list[str]) -> None:
    """Real PyTorch training steps: each in a process of its own, as libraries keep workspaces."""
    if "torch" not in backends:
        return
    for model in STEPS:
        for precision in PRECISIONS:
            for optimizer in OPTIMIZERS:
                key = f"steps/{model}/{precision}/{optimizer}"
                results.run(key, real_step_in_process, model, precision, optimizer)


def real_step_in_process(model: str, precision: str, optimizer: str) -> dict[str, Any]:
    """Return measured and predicted peaks of one configuration."""
    command = [sys.executable, __file__, "--step", model, precision, optimizer]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-400:])
    measured = json.loads(done.stdout.splitlines()[-1])
    spec, batch, sequence = STEPS[model]
    params = {"batch": batch, **({"seq": sequence} if sequence else {})}
    report = gs.peak(gs.load(spec, **params), optimizer=optimizer, precision=precision, allocator="torch")
    first, steady = report.first, report.steady
    predicted = {
        "max_memory_allocated": steady.peak_bytes,
        "max_memory_reserved": max(first.reserved_peak_bytes or 0, steady.reserved_peak_bytes or 0),
    }
    return {"measured": measured, "predicted": predicted}


def real_step(model: str, precision: str, optimizer: str) -> dict[str, int]:
    """Run three steps on the GPU; return the peaks of the third, and what the device holds beside PyTorch."""
    import torch
    from torch_truth import build

    kinds: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
        "adam": lambda p: torch.optim.Adam(p, lr=1e-4),
    }
    _, batch, sequence = STEPS[model]
    torch.set_default_device("cuda")
    net, _, forward = build(model, batch, sequence, "sdpa", None)
    net.train()
    optimize = kinds[optimizer](net.parameters())
    for number in range(3):
        if number == 2:
            torch.cuda.reset_peak_memory_stats()
        optimize.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "amp-bf16"):
            loss = forward()
        loss.backward()
        optimize.step()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()
    return {
        "max_memory_allocated": torch.cuda.max_memory_allocated(),
        "max_memory_reserved": torch.cuda.max_memory_reserved(),
        "requested_peak": stats["requested_bytes.all.peak"],
        "context_bytes": total - free - torch.cuda.memory_reserved(),
    }


def head() -> dict[str, Any]:
    """Return the provenance of a run: device, driver, versions, commit, date."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    versions = {"graphsim": gs.__version__}
    for name in ("cupy-cuda13x", "torch", "transformers", "numpy", "networkx"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "schema": "graphsim-gpu-validation/1",
        "device": properties["name"].decode(),
        "device_bytes": properties["totalGlobalMem"],
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "versions": versions,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def table(data: dict[str, Any]) -> Iterator[str]:
    """Yield the results as Markdown for the docs."""
    entries = data["entries"]
    yield f"{data['device']}, {data['date'][:10]}, commit {data['commit'][:7]}."
    yield ""
    yield "| replay | streams | events | used equal | held equal |"
    yield "|---|---:|---:|---:|---:|"
    for name in ("cupy", "lockstep", "torch"):
        chosen = [e for key, e in entries.items() if key.startswith(("streams/", "random/")) and key.endswith(name)]
        sums = [sum(entry[column] for entry in chosen) for column in ("events", "matched_used", "matched_total")]
        yield f"| {name} | {len(chosen)} | {sums[0]:,} | {sums[1]:,} | {sums[2]:,} |"
    yield ""
    yield "| real step | allocated, measured | predicted | | reserved, measured | predicted | |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for key, entry in entries.items():
        if key.startswith("steps/"):
            cells = [key.removeprefix("steps/")]
            for name in ("max_memory_allocated", "max_memory_reserved"):
                measured, predicted = entry["measured"][name], entry["predicted"][name]
                cells += [f"{measured:,}", f"{predicted:,}", f"{predicted / measured - 1:+.2%}"]
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON files")
    parser.add_argument("--table", type=Path, help="print a JSON file as tables, measure nothing")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print("\n".join(table(json.loads(options.table.read_text()))))
        return
    if options.step:
        print(json.dumps(real_step(*options.step)))
        return
    backends = []
    for name in ("cupy", "torch"):
        try:
            print(f"{name}: {BACKENDS[name]().device}", flush=True)
            backends.append(name)
        except GraphSimError as error:
            print(f"{name}: {error}", flush=True)
    if "cupy" not in backends:
        sys.exit("no GPU here: nothing is measured, nothing is written")
    provenance = head()
    options.out.mkdir(parents=True, exist_ok=True)
    name = provenance["device"].lower().replace(" ", "-")
    results = Results(options.out / f"{name}.json", provenance)
    parts = {"streams": streams, "random": random_streams, "compute": compute, "steps": steps, "speed": speed}
    for part in options.only:
        parts[part](results, backends)
        gc.collect()
    results.save()
    print(f"{len(results.data['entries'])} entries, {len(results.data['skipped'])} skipped: {results.path}")


if __name__ == "__main__":
    main()
