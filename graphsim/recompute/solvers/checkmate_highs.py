"""HiGHS on a program of Checkmate's: progress, Ctrl-C, a start and a bound.

It works in a process of its own, `highs_child`, which is kept for the next program.
"""

from __future__ import annotations

import atexit
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from graphsim.core.index import Floats
from graphsim.errors import MissingExtraError, SolverError
from graphsim.recompute.solvers import highs_child
from graphsim.recompute.solvers.checkmate_model import Program
from graphsim.recompute.solvers.highs_child import Message

Progress = Callable[[float, float], None]
"""Told of the best objective (infinity for none) and the bound."""

GRACE = 60.0
"""Seconds beyond its time limit that HiGHS may take to start, to read the program and to stop."""
STOPPING = 10.0
"""Seconds that it may take to stop after Ctrl-C."""
_LOOK = 0.1
"""Seconds between two looks whether Ctrl-C was pressed, where nothing else wakes us."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver found.

    Attributes:
        x: the best point; None if there is none.
        bound: lower bound of the objective; infinity if no point satisfies the rows.
        interrupted: by Ctrl-C.
    """

    x: Floats | None
    bound: float
    interrupted: bool = False


def solve(
    program: Program,
    *,
    integer: bool,
    seconds: float,
    gap: float = 0.0,
    seed: int = 0,
    start: Floats | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Return the cheapest point of *program* that is found in time.

    Args:
        program: to minimise.
        integer: columns marked so are integers; else the relaxation is solved.
        seconds: time limit.
        gap: relative gap at which to stop.
        seed: of the solver.
        start: values of the first columns of a point to start from.
        progress: told of the objective and its bound, about twice a second.

    Raises:
        MissingExtraError: highspy is not installed.
        SolverError: HiGHS ended without an answer, or did not stop in time.
        KeyboardInterrupt: Ctrl-C, and HiGHS had nothing to say when it stopped.
    """
    if find_spec("highspy") is None:
        raise MissingExtraError("highspy", "solver")
    limit = max(0.01, seconds)
    columns = ("cost", "lower", "upper", "row_lower", "row_upper", "start", "column", "value")
    message: Message = {name: getattr(program, name) for name in columns}
    message |= {"integer": program.integer & integer, "seconds": limit, "gap": gap, "seed": seed}
    if start is not None and integer:
        message["known"] = start
    child = _Child.take()
    try:
        child.said.put(message)
        answer, interrupted = child.answer(limit + GRACE, progress)
    except BaseException:
        child.end()
        raise
    child.give_back()
    return Solution(answer.get("x"), float(answer["bound"]), interrupted)


_idle: list[_Child] = []
"""Those that wait for a program."""


class _Child:
    """A process in which HiGHS works; out of reach of the terminal's Ctrl-C, which is heard here."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._since = 0.0
        self.said: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        """What it is told; None: nothing more."""
        self.heard: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        """What it tells; None: it has ended."""
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", highs_child.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )
        except OSError as error:
            raise SolverError(f"HiGHS: {sys.executable or 'Python'} does not start: {error.strerror}") from None
        for work, stream in ((self._talk, self.process.stdin), (self._listen, self.process.stdout)):
            threading.Thread(target=work, args=(stream,), daemon=True).start()

    @staticmethod
    def take() -> _Child:
        """Return one that waits, else a new one."""
        while _idle:
            child = _idle.pop()
            if time.monotonic() - child._since < highs_child.IDLE / 2 and child.heard.empty():
                return child
            child.end()
        return _Child()

    def give_back(self) -> None:
        """Keep it for the next program."""
        self._since = time.monotonic()
        _idle.append(self)

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.said.put(None)
        self._errors.close()

    def answer(self, seconds: float, progress: Progress | None) -> tuple[Message, bool]:
        """Return its answer, and whether Ctrl-C had it stop before its time; a second Ctrl-C does not wait for it."""
        until, stopping = time.monotonic() + seconds, False
        while True:
            try:
                heard = self._next(until)
                if "bound" in heard:
                    return heard, stopping
                if progress is not None:
                    progress(float(heard["best"]), float(heard["least"]))
            except KeyboardInterrupt:
                if stopping:
                    raise
                stopping, until = True, time.monotonic() + STOPPING
                self.said.put({"stop": True})
            except SolverError:
                if stopping:
                    raise KeyboardInterrupt from None
                raise

    def _next(self, until: float) -> Message:
        """Return what it says next."""
        while True:
            try:
                heard = self.heard.get(timeout=_LOOK)
            except queue.Empty:
                if time.monotonic() > until:
                    raise SolverError(
                        "HiGHS does not stop at its time limit: it was ended, without an answer"
                    ) from None
                continue
            if heard is None:
                raise SolverError(f"HiGHS ended without an answer: {self._last_words()}")
            return heard

    def _last_words(self) -> str:
        code = self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}, {lines[-1]}" if lines else how

    def _talk(self, stdin: Any) -> None:
        """Tell it what is to be said, until it ends."""
        with suppress(BrokenPipeError), stdin:
            while message := self.said.get():
                highs_child.send(stdin, **message)

    def _listen(self, stdout: Any) -> None:
        """Hear what it says, until it ends."""
        with stdout:
            while message := highs_child.receive(stdout):
                self.heard.put(message)
        self.process.wait()
        self.heard.put(None)


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they are the parent's
