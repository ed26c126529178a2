"""HiGHS as a program of its own: it can end the process it runs in, and its library clashes with the one in OR-Tools.

Messages are npz archives behind their length: programs come in on standard input, what is reached and answers go out on
standard output. `checkmate_highs` starts it; it ends with that process, or when nothing is asked of it for a while.

Source: Huangfu and Hall, "Parallelizing the dual revised simplex method", 2018; https://highs.dev.
"""

from __future__ import annotations

import io
import os
import queue
import sys
import threading
import time
from math import isfinite
from typing import Any, BinaryIO

import numpy as np

IDLE = 60.0
"""Seconds after which it ends, if nothing is asked of it."""
_EVERY = 0.5
"""Seconds between two reports."""
_TOLERANCE = 1e-7

Message = dict[str, Any]
"""Arrays by name; numbers are arrays without an axis."""


def send(stream: BinaryIO, **message: Any) -> None:
    """Write a message, whose values are arrays or numbers."""
    archive = io.BytesIO()
    np.savez(archive, **message)
    stream.write(archive.tell().to_bytes(8, "little") + archive.getbuffer())
    stream.flush()


def receive(stream: BinaryIO) -> Message | None:
    """Return the next message; None if the stream ends first."""
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    body = stream.read(size) if len(head) == 8 else b""
    if len(head) < 8 or len(body) < size:
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        return dict(archive)


def main() -> None:
    """Answer programs, one after the other."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no message
    programs: queue.SimpleQueue[Message] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(programs, stop), daemon=True).start()
    while True:
        try:
            program = programs.get(timeout=IDLE)
        except queue.Empty:
            os._exit(0)  # at once: the other thread waits for messages
        send(out, **_solve(program, stop, out))


def _listen(programs: queue.SimpleQueue[Message], stop: threading.Event) -> None:
    """Hear of programs, and of the wish to stop, while HiGHS works; end with the process that asks."""
    while message := receive(sys.stdin.buffer):
        if "stop" in message:
            stop.set()
        else:
            stop.clear()
            programs.put(message)
    os._exit(0)


def _solve(program: Message, stop: threading.Event, out: BinaryIO) -> Message:
    """Return the best point, if there is one, and a bound of the objective."""
    import highspy

    solver: Any = highspy.Highs()
    solver.silent()
    options = {"time_limit": "seconds", "mip_rel_gap": "gap", "random_seed": "seed"}
    for name, ours in options.items():
        solver.setOptionValue(name, program[ours].item())
    solver.setOptionValue("primal_feasibility_tolerance", _TOLERANCE)
    solver.setOptionValue("mip_feasibility_tolerance", _TOLERANCE)
    _load(solver, program)
    if "known" in program:
        known = program["known"]
        solver.setSolution(len(known), np.arange(len(known), dtype=np.int32), known)

    def heed(event: Any) -> None:
        if stop.is_set():
            event.interrupt()

    for callback in (solver.cbMipInterrupt, solver.cbSimplexInterrupt, solver.cbIpmInterrupt):
        callback.subscribe(heed)
    solver.cbMipInterrupt.subscribe(_Reporter(out))
    solver.run()
    return _answer(solver, highspy.HighsModelStatus, bool(program["integer"].any()))


def _load(solver: Any, program: Message) -> None:
    solver.passModel(
        len(program["cost"]),
        len(program["row_lower"]),
        len(program["value"]),
        2,  # rows are given
        1,  # minimise
        0.0,
        program["cost"],
        program["lower"],
        program["upper"],
        program["row_lower"],
        program["row_upper"],
        program["start"][:-1].astype(np.int32),
        program["column"].astype(np.int32),
        program["value"],
        program["integer"].astype(np.int32),
    )


def _answer(solver: Any, statuses: Any, integer: bool) -> Message:
    status, info = solver.getModelStatus(), solver.getInfo()
    if status == statuses.kInfeasible:
        return {"bound": np.inf}
    if integer:
        bound = info.mip_dual_bound if isfinite(info.mip_dual_bound) else 0.0
    else:
        bound = info.objective_function_value if status == statuses.kOptimal else 0.0
    found = info.primal_solution_status == 2  # feasible
    point = {"x": np.array(solver.getSolution().col_value)} if found else {}
    return {"bound": max(0.0, bound), **point}


class _Reporter:
    """Tells what a search over integers has reached."""

    def __init__(self, out: BinaryIO) -> None:
        self.out, self.last = out, time.perf_counter()

    def __call__(self, event: Any) -> None:
        now, reached = time.perf_counter(), event.data_out
        if now - self.last >= _EVERY:
            self.last = now
            send(self.out, best=reached.mip_primal_bound, least=max(0.0, reached.mip_dual_bound))


if __name__ == "__main__":
    main()
