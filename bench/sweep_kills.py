"""A sweep of 500 points, killed 20 times at random moments, ends with exactly 500 right rows.

    python bench/sweep_kills.py                    # seconds of work, a minute with the starts
    python bench/sweep_kills.py --seed 7 --dask    # and the same table from a local Dask cluster (extra 'dask')

SIGKILL hits the sweep alone (its workers must then end by themselves) or with its workers, while it starts, while it
works, and while it writes. Exits with 1 if a finished result is lost or computed twice, a worker stays behind, or a row
is not what `graphsim.peak` and `graphsim.answers.fit.need_of` say when they are called directly.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import graphsim as gs
from graphsim.answers.fit import need_of
from graphsim.answers.sweep.journal import FORMAT

MLP = """
[params]
batch = 8
width = 64

[inputs]
x = { shape = ["batch", "width"] }
label = { shape = ["batch"], dtype = "int64" }

[model]
layers = [
  { op = "linear", out = "4*width" }, "relu", { op = "linear", out = 10 }, { op = "cross_entropy", with = "label" },
]
"""
Point = dict[str, Any]


def points() -> list[Point]:
    """Return 500 points of three small models."""
    optimizers, precisions = ("adamw", "sgd", "adam8bit", "lion", "momentum"), ("fp32", "amp-bf16")
    gpt2 = [
        {"source": "gpt2", "layers": 2, "batch": batch, "seq": seq, "gpu": gpu}
        for batch, seq, gpu in itertools.product((1, 4), (64, 256, 1024), ("t4", "a100-80g"))
    ]
    lenet = [{"source": "lenet5", "batch": batch} for batch in range(1, 20)]
    mlp = [{"source": "mlp.toml", "batch": batch, "width": width} for batch in range(1, 20) for width in (32,)]
    settings = [{"precision": p, "optimizer": o} for p, o in itertools.product(precisions, optimizers)]
    return [model | setting for model in (*gpt2, *lenet, *mlp) for setting in settings]


def right_row(point: Point, folder: Path) -> dict[str, str]:
    """Return what the row of *point* must say, by calls that no sweep makes."""
    options = dict(point)
    source, gpu = options.pop("source"), options.pop("gpu", "")
    training = gs.Training(optimizer=options.pop("optimizer"), precision=options.pop("precision"), device=gpu)
    graph = gs.load(folder / source if source.endswith(".toml") else source, **options)
    report = gs.peak(graph, training=training)
    need = {"need_bytes": need_of(graph, training)} if gpu else {}
    found = {"peak_bytes": report.steady.peak_bytes, "first_peak_bytes": report.first.peak_bytes, **need}
    return {name: str(value) for name, value in (point | found).items()}


class Sweep:
    """The sweep under test, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal, self.output = folder, folder / "out.csv.journal", folder / "out.csv"
        asked = points()
        names = dict.fromkeys(name for point in asked for name in point)
        with (folder / "points.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(asked)
        (folder / "mlp.toml").write_text(MLP)
        path = os.pathsep.join(filter(None, (str(Path(gs.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        self.environment = {**os.environ, "PYTHONPATH": path}

    def start(self, output: str = "out.csv", *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "graphsim", "sweep", "--list", "points.csv", "-o", output, *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def lines(self) -> list[bytes]:
        """Return the whole lines of the journal."""
        if not self.journal.exists():
            return []
        return [line for line in self.journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def kill(self, moment: int, generator: random.Random) -> str:
        """Start the sweep and kill it once the journal has *moment* lines; what was kept must stay kept."""
        before, process = self.lines(), self.start()
        if moment <= len(before):  # while it starts
            time.sleep(generator.uniform(0, 1.5))
        else:
            while len(self.lines()) < moment:
                if process.poll() is not None:
                    raise SystemExit("the sweep ended by itself before its time")
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.03))
        whole_group = generator.random() < 0.5
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        after = self.lines()
        if after[: len(before)] != before:
            raise SystemExit("LOST: a line of the journal has changed")
        self.wait_for_workers(process.pid)
        return f"{len(after):4} lines, {'sweep and workers' if whole_group else 'sweep alone'}"

    def wait_for_workers(self, session: int) -> None:
        """Wait until no process of the session runs; a worker that stays behind fails."""
        for _ in range(200):
            listed = subprocess.run(["ps", "-s", str(session), "-o", "stat="], capture_output=True, text=True)
            if all(state.startswith("Z") for state in listed.stdout.split()):
                return
            time.sleep(0.05)
        raise SystemExit("a worker outlives its sweep by 10 s")


def moments(count: int, kills: int, generator: random.Random) -> list[int]:
    """Return the lines of the journal at which to kill: ascending, every fourth kill while it starts (0)."""
    working = sorted(generator.sample(range(2, count), kills - kills // 4))
    for _ in range(kills // 4):
        working.insert(generator.randrange(len(working) + 1), 0)
    return working


def verify(sweep: Sweep, asked: list[Point]) -> None:
    """Compare the table with direct calls, and the journal with one line per point."""
    keys = [entry["key"] for entry in map(json.loads, sweep.lines()) if "found" in entry]
    if len(keys) != len(asked) or len(set(keys)) != len(asked):
        raise SystemExit(f"REPEATED: {len(keys)} results for {len(set(keys))} of {len(asked)} points")
    if json.loads(sweep.lines()[0]) != {"journal": FORMAT}:
        raise SystemExit("the journal has lost its header")
    with sweep.output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != len(asked):
        raise SystemExit(f"{len(rows)} rows for {len(asked)} points")
    for row, point in zip(rows, asked, strict=True):
        right = right_row(point, sweep.folder)
        if row["error"] or {name: row[name] for name in right} != right:
            raise SystemExit(f"WRONG: {row} where {right} is right")


def same_on_dask(sweep: Sweep) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        if sweep.start("dask.csv", "--scheduler", cluster.scheduler_address).wait():
            raise SystemExit("the sweep on Dask failed")
    if (sweep.folder / "dask.csv").read_bytes() != sweep.output.read_bytes():
        raise SystemExit("the table from Dask is another")
    print("the same table from a Dask cluster of two workers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dask", action="store_true")
    options = parser.parse_args()
    generator, asked = random.Random(options.seed), points()
    with tempfile.TemporaryDirectory() as name:
        sweep = Sweep(Path(name))
        for number, moment in enumerate(moments(len(asked), options.kills, generator), start=1):
            print(f"kill {number:2}: {sweep.kill(moment, generator)}", flush=True)
        begin = time.monotonic()
        if sweep.start().wait():
            raise SystemExit("the last run failed")
        print(f"the rest took {time.monotonic() - begin:.1f} s")
        verify(sweep, asked)
        print(f"{len(asked)} right rows, {len(asked)} evaluations kept, none twice")
        if options.dask:
            same_on_dask(sweep)
        begin = time.monotonic()
        if sweep.start("whole.csv").wait() or (sweep.folder / "whole.csv").read_bytes() != sweep.output.read_bytes():
            raise SystemExit("the table of an undisturbed sweep is another")
        print(f"the same table from an undisturbed sweep, in {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
