"""Who evaluates: processes of this machine, or a Dask cluster. Both are executors of `concurrent.futures`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphsim.answers.processes import cores, processes, submit
from graphsim.answers.sweep.evaluation import Outcome, Task, evaluate, failed
from graphsim.errors import MissingExtraError, UsageError

DIED = "its worker died, out of memory perhaps; the same command tries it again"
SECONDS_TO_CONNECT = 10
VAIN_ROUNDS = 3
"""Executors that break before anything is found at all: then it is not a point that breaks them."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Where tasks are evaluated.

    Attributes:
        executor: opens an executor.
        slots: tasks that are given to it at once.
        died: what a task raises whose worker died, or had no memory for it.
    """

    executor: Callable[[], AbstractContextManager[Executor]]
    slots: int
    died: tuple[type[Exception], ...] = (BrokenExecutor, MemoryError)


def outcomes(tasks: Iterable[Task], workers: Workers) -> Generator[tuple[Task, Outcome], None, None]:
    """Yield each task with its outcome, in the order in which they finish.

    A worker that dies (for lack of memory) takes others' tasks with it: they are all tried again, each alone.

    Raises:
        UsageError: the workers cannot evaluate anything.
    """
    suspects: list[Task] = []
    yield from _attempt(tasks, workers, suspects)
    for task in suspects:
        again: list[Task] = []
        yield from _attempt([task], workers, again)
        if again:
            yield task, failed(DIED)


def _attempt(tasks: Iterable[Task], workers: Workers, died: list[Task]) -> Iterator[tuple[Task, Outcome]]:
    """Yield what is found, with a new executor for what one that breaks leaves; *died* takes what it had in work."""
    waiting = deque(tasks)
    total = len(waiting)
    rounds = 0
    while waiting:
        with workers.executor() as executor:
            yield from _round(executor, waiting, workers, died)
        rounds += 1
        if rounds >= VAIN_ROUNDS and len(waiting) + len(died) == total:
            raise UsageError("the workers die before they find anything: is there memory for them? try fewer --jobs")


def _round(
    executor: Executor, waiting: deque[Task], workers: Workers, died: list[Task]
) -> Iterator[tuple[Task, Outcome]]:
    """Work until nothing waits, or nothing is accepted any more."""
    pending: dict[Future[Outcome], Task] = {}
    while True:
        while waiting and len(pending) < workers.slots:
            try:
                pending[submit(executor, evaluate, waiting[0])] = waiting[0]
            except BrokenExecutor:
                break
            waiting.popleft()
        if not pending:
            return
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            task, outcome = pending.pop(future), _result(future, workers.died)
            if outcome is None:
                died.append(task)
            else:
                yield task, outcome


def _result(future: Future[Outcome], died: tuple[type[Exception], ...]) -> Outcome | None:
    try:
        return future.result()
    except died:
        return None
    except Exception as error:
        raise UsageError(
            f"a worker failed: {type(error).__name__}: {error}; what is finished is kept, the same command goes on"
        ) from None


def this_process() -> Workers:
    """Return a worker that is a thread of this process: nothing is started anew, so that any script may sweep."""
    return Workers(partial(ThreadPoolExecutor, 1), slots=2)


def local_processes(jobs: int = 0) -> Workers:
    """Return *jobs* processes of this machine, one per usable core if 0."""
    count = jobs or cores()
    return Workers(partial(processes, count), slots=2 * count)


def dask_cluster(address: str) -> Workers:
    """Return the workers of the Dask cluster whose scheduler listens at *address* (``tcp://host:8786``).

    Raises:
        MissingExtraError: Dask is not installed.
        UsageError: no scheduler answers there.
    """
    try:
        from distributed import KilledWorker
    except ImportError:
        raise MissingExtraError("distributed", "dask") from None
    with _connected(address) as client:
        cores = sum(client.ncores().values())
    return Workers(partial(_cluster, address), slots=64 + 4 * cores, died=(KilledWorker, MemoryError))


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Give a client; Dask's functions have no types."""
    import distributed

    untyped: Any = distributed
    try:
        client = untyped.Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address[:80]!r}: {error}") from None
    with client:
        yield client


@contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    """Give the cluster as an executor; what is still in work when it is left is cancelled."""
    with _connected(address) as client:
        executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)
