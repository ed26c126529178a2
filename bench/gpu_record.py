"""The recorder: real training steps on a GPU, with every event of PyTorch's allocator, for whoever has none.

    python bench/gpu_record.py [--out bench/results] [--only mlp hf:gpt2] [--minutes 8] [--device cuda]

Runs the cases of workloads_record.py, smallest and most telling first, each in a process of its own, as libraries keep
workspaces. Two steps each; then a third under the profiler, for the kernels. Before the large networks it replays the
steps of all shipped specs through CuPy's pool and PyTorch's allocator. Needs PyTorch 2.11 or later, numpy and networkx;
what needs transformers or CuPy is a line with that reason where they are missing. Writes ``record-DEVICE-N.jsonl.gz``,
a line for each case, at most 8 files of 16 MiB: what is there is not run again, so a run that is interrupted goes on
where it stopped. ``python bench/gpu_rows.py RECORD ...`` compares a record with predictions, on any machine.

A line: `case`; `device`, `card`, `software`; `events`: bytes allocated (positive) and freed (negative), in order;
`segments`: (events before, bytes) taken from the device and given back; `marks`: (name, events before) of the phases;
`steps`: allocated and reserved at most in each step; `context_bytes`: on the device outside of the allocator;
`kernels`: names and calls of the third step; or `failed`, with the reason. A line of a replay has `replays`: for each
spec the events, and after how many of them the bytes in use and held were those predicted. ``--device cpu`` records the
allocator of the host by the profiler's events, and replays in numpy: a rehearsal.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

FILES, FILE_BYTES = 8, 16 * 2**20
SECONDS = 120.0
"""A case may take."""
REPLAY = "replay/"
"""Begins the cases that replay the specs, before the name of the backend."""
KERNELS = 400
"""Names of kernels that are kept."""
HISTORY = 2_000_000
"""Events that PyTorch is asked to keep."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="*", default=[], help="cases that begin so")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--case", help=argparse.SUPPRESS)  # in the process of that case
    options = parser.parse_args()
    if options.case:
        print(json.dumps(recorded(options.case, options.device), separators=(",", ":")))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here: --device cpu rehearses on the host", file=sys.stderr)
        return 2
    names = cases_of(options.device)
    wanted = [name for name in names if not options.only or name.startswith(tuple(options.only))]
    record, end = Record(options.out, _slug(options.device)), time.monotonic() + 60 * options.minutes
    for name in wanted:
        if name in record.done:
            continue
        if time.monotonic() > end or not record.room:
            print(f"stopped before {name}: call again to go on")
            return 0
        start = time.monotonic()
        line = in_process(name, options.device, names[name])
        record.add(line)
        print(f"{time.monotonic() - start:6.1f} s  {name}  {told(line)}", flush=True)
    return 0


def cases_of(device: str) -> dict[str, str]:
    """Return what is run, in order, with the setting of PyTorch's allocator for each: replays before large networks."""
    from workloads_record import CASES, LARGE

    small = {name: case.allocator for name, case in CASES.items() if not name.startswith(LARGE)}
    replays = {f"{REPLAY}{backend}": "" for backend in (("cupy", "torch") if device == "cuda" else ("numpy",))}
    return {**small, **replays, **{name: case.allocator for name, case in CASES.items()}}


def told(line: Mapping[str, Any]) -> str:
    """Return a line of the record in a few words."""
    if "failed" in line:
        return str(line["failed"])
    if "replays" in line:
        replayed = [one for one in line["replays"].values() if "failed" not in one]
        names = "events", "matched_used", "matched_total"
        events, used, held = (sum(one[name] for one in replayed) for name in names)
        specs = f"{len(replayed)} of {len(line['replays'])} specs"
        return f"{specs}, {events:,} events: {used:,} as predicted in use, {held:,} held"
    return f"{len(line['events']):,} events, {line['steps'][-1]}"


class Record:
    """The files of one device: a line for each case, compressed, appended one at a time."""

    def __init__(self, folder: Path, slug: str) -> None:
        self.folder, self.slug = folder, slug
        folder.mkdir(parents=True, exist_ok=True)
        self.done = {line["case"] for path in self.files for line in lines_of(path)}

    @property
    def files(self) -> list[Path]:
        """The files that there are, in order."""
        return sorted(self.folder.glob(f"record-{self.slug}-*.jsonl.gz"))

    @property
    def room(self) -> bool:
        """Whether another line has room."""
        return len(self.files) < FILES or self.files[-1].stat().st_size < FILE_BYTES // 2

    def add(self, line: Mapping[str, Any]) -> None:
        """Append *line*: to the last file, or to a new one where that would be too large."""
        packed = gzip.compress((json.dumps(line, separators=(",", ":")) + "\n").encode(), mtime=0)
        files = self.files
        full = not files or files[-1].stat().st_size + len(packed) > FILE_BYTES
        path = self.folder / f"record-{self.slug}-{len(files)}.jsonl.gz" if full else files[-1]
        with path.open("ab") as file:  # members of a gzip file stand one after the other
            file.write(packed)
        self.done.add(line["case"])


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the cases of a file; one that was cut off while it was written ends it."""
    with gzip.open(path, "rt") as file:
        try:
            for line in file:
                yield json.loads(line)
        except (EOFError, ValueError, OSError):
            return


def _slug(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else "host"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def in_process(name: str, device: str, allocator: str = "") -> dict[str, Any]:
    """Return the line of a case that ran in a process of its own; why there is none, if it failed."""
    environment = {**os.environ, **({"PYTORCH_ALLOC_CONF": allocator} if allocator else {})}
    command = [sys.executable, __file__, "--case", name, "--device", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return {"case": name, "failed": f"took more than {SECONDS:.0f} s"}
    if done.returncode:
        return {"case": name, "failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


# -- one case ----------------------------------------------------------------------------------------


def recorded(name: str, device: str) -> dict[str, Any]:
    """Run a case and return its line."""
    from workloads_record import CASES, settings_of, step_of

    warnings.filterwarnings("ignore")
    if name.startswith(REPLAY):
        return {"case": name, "device": device, **software(device), "replays": replays(name.removeprefix(REPLAY))}
    case, watch = CASES[name], GpuWatch() if device == "cuda" else HostWatch()
    torch.manual_seed(0)
    with settings_of(case), watch.watched():
        form = torch.channels_last if "channels_last" in case.settings else torch.contiguous_format
        model: Any = case.model().to(device).train()
        model.to(memory_format=form)
        batch = tuple(t.to(device, memory_format=form) if t.dim() == 4 else t.to(device) for t in case.batch())
        optimizer = case.optimizer(model.parameters())
        step = step_of(case, device, watch.mark)
        for _ in range(2):
            with watch.step():
                step(model, batch, optimizer)
        line = watch.line()
    with settings_of(case):
        kernels = watch.kernels(lambda: step(model, batch, optimizer))
    return {"case": name, "device": device, **software(device), **line, "kernels": kernels}


def replays(backend: str) -> dict[str, Any]:
    """Return the replay of a step of every shipped spec; or `failed`, with the reason: time, for one."""
    from gpu_validation import replayed

    from graphsim.errors import GraphSimError
    from graphsim.sources.spec import shipped_specs

    found: dict[str, Any] = {}
    end = time.monotonic() + 0.5 * SECONDS
    for spec in shipped_specs():
        if time.monotonic() > end:
            found[spec] = {"failed": "no time was left"}
            continue
        try:
            found[spec] = replayed(spec, "none", backend)
        except GraphSimError as error:  # what the backend cannot do is no fault of the others
            found[spec] = {"failed": str(error)}
    return found


def software(device: str) -> dict[str, Any]:
    """Return what the record was made with."""
    said = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda or ""}
    if device == "cpu":
        return {"card": "host", "software": said}
    properties = torch.cuda.get_device_properties(0)
    said |= {"cudnn": str(torch.backends.cudnn.version()), "total_memory": str(properties.total_memory)}
    return {"card": properties.name, "software": said}


class GpuWatch:
    """PyTorch's caching allocator for CUDA, by the history that it keeps."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, int]] = []
        self.peaks: list[dict[str, int]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the history inside."""
        torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=HISTORY)
        try:
            yield
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)

    @contextmanager
    def mark(self, name: str) -> Iterator[None]:
        """Note where a phase begins."""
        torch.cuda.synchronize()
        self.marks.append((name, len(self._stream()[0])))
        yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """Note the peaks of a step."""
        torch.cuda.reset_peak_memory_stats()
        yield
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        names = {"allocated": "allocated_bytes", "reserved": "reserved_bytes", "requested": "requested_bytes"}
        self.peaks.append({short: stats[f"{name}.all.peak"] for short, name in names.items()})

    def line(self) -> dict[str, Any]:
        """Return what was recorded."""
        events, segments = self._stream()
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        said = {"events": events, "segments": segments, "marks": self.marks, "steps": self.peaks}
        return said | {"context_bytes": context}

    def kernels(self, run: Callable[[], None]) -> dict[str, int]:
        """Return the kernels that *run* calls, and how often."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize()
        found = Counter(e.name for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA)
        return {name[:160]: count for name, count in found.most_common(KERNELS)}

    @staticmethod
    def _stream() -> tuple[list[int], list[tuple[int, int]]]:
        return stream_of(torch.cuda.memory._snapshot())


def stream_of(snapshot: Mapping[str, Any]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the events of a snapshot of the first device, and its segments with the events before each."""
    events: list[int] = []
    segments: list[tuple[int, int]] = []
    for entry in snapshot["device_traces"][0]:
        action, size = entry["action"], int(entry["size"])
        if action == "alloc":
            events.append(size)
        elif action == "free_requested":
            events.append(-size)
        elif action in ("segment_alloc", "segment_map"):
            segments.append((len(events), size))
        elif action in ("segment_free", "segment_unmap"):
            segments.append((len(events), -size))
    return events, segments


class HostWatch:
    """PyTorch's allocator of the host, by the profiler's events."""

    def __init__(self) -> None:
        self._events: list[tuple[int, str, int]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Record inside."""
        from torch.profiler import ProfilerActivity, profile

        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.start()
        yield

    @contextmanager
    def mark(self, name: str) -> Iterator[None]:
        """Note where a phase begins."""
        with torch.profiler.record_function(f"##{name}"):
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """Nothing is known of a step but its events."""
        yield

    def line(self) -> dict[str, Any]:
        """Return what was recorded."""
        self._profile.stop()
        found = self._profile.profiler.kineto_results.events()
        told = sorted((e.start_ns(), number, e.name(), e.nbytes()) for number, e in enumerate(found))
        events: list[int] = []
        marks: list[tuple[str, int]] = []
        for _, _, name, nbytes in told:
            if name == "[memory]" and nbytes:
                events.append(nbytes)
            elif name.startswith("##"):
                marks.append((name[2:], len(events)))
        return {"events": events, "segments": [], "marks": marks, "steps": list(peaks_of(events, marks))}

    def kernels(self, run: Callable[[], None]) -> dict[str, int]:
        """There are none."""
        return {}


def peaks_of(events: list[int], marks: list[tuple[str, int]]) -> Iterator[dict[str, int]]:
    """Yield what is allocated at most in each step, which begins with its first phase."""
    first = marks[0][0]
    begins = [at for name, at in marks if name == first]
    live, total = [], 0
    for change in events:
        total += change
        live.append(total)
    for begin, end in zip(begins, [*begins[1:], len(events)], strict=True):
        yield {"allocated": max(live[begin:end], default=0)}


if __name__ == "__main__":
    sys.exit(main())
