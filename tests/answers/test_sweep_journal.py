"""The journal of a sweep: whatever ends it, no finished result is lost and none is computed twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace

import pytest
from exhaustive import only
from hypothesis import example, given
from hypothesis import strategies as st

import graphsim.answers.sweep.workers as workers_module
from graphsim.answers.sweep import Point, Workers, dask_cluster, evaluate, grid, sweep
from graphsim.answers.sweep.evaluation import Outcome, tasks_of
from graphsim.answers.sweep.journal import opened
from graphsim.answers.sweep.run import journal_of
from graphsim.errors import UsageError

HERE = Workers(lambda: ThreadPoolExecutor(1), slots=2)
TEN = grid([[{"source": "lenet5"}], [{"batch": batch} for batch in range(1, 11)]])


def kept(output) -> list[str]:
    """Return the keys of all results in the journal of *output*: one per evaluation that finished."""
    lines = journal_of(output).read_bytes().split(b"\n")[1:-1]
    return [entry["key"] for entry in map(json.loads, lines) if "found" in entry]


@given(cut=st.integers(1, 10**6), rest=st.sampled_from([b"", b"\0" * 50, b'{"key": "x", "fou', b"\xff"]))
def test_a_journal_that_is_cut_anywhere_keeps_its_whole_lines(tmp_path_factory, cut, rest):
    path = tmp_path_factory.mktemp("journal") / "out.csv.journal"
    with opened(path) as journal:
        for number in range(5):
            journal.add(str(number), {"peak_bytes": number})
        journal.add_table(b"table", ["0", "1"])
    whole = path.read_bytes()
    left = whole[: cut % (len(whole) + 1)]
    path.write_bytes(left + rest if left.count(b"\n") else left)
    with opened(path) as journal:
        results = max(0, left.count(b"\n") - 1)
        assert journal.found == {str(n): {"peak_bytes": n} for n in range(min(5, results))}
        assert len(journal.tables) == (left == whole)
        journal.add("new", {"peak_bytes": 9})
    with opened(path) as journal:
        assert journal.found["new"] == {"peak_bytes": 9}
        assert len(journal.found) == min(5, results) + 1


def test_lines_that_are_no_results_are_passed_over(tmp_path):
    path = tmp_path / "journal"
    with opened(path) as journal:
        journal.add("a", {"x": 1})
    with path.open("ab") as file:
        file.write(b"\0\0\0\n[1]\nnull\n" + b"[" * 10_000 + b'\n{"key": "b", "found": 3}\n{"table": "t", "keys": 1}\n')
    with opened(path) as journal:
        assert (journal.found, journal.tables) == ({"a": {"x": 1}}, {})
        journal.add("c", {"x": 2})
    with opened(path) as journal:
        assert journal.found == {"a": {"x": 1}, "c": {"x": 2}}


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
@example(at=5056, bit=0)  # 0.30000000000000004 becomes ...05, which is the same number
def test_a_result_of_which_a_bit_has_changed_is_no_result(tmp_path_factory, at, bit):
    path = tmp_path_factory.mktemp("journal") / "out.csv.journal"
    written = {str(number): {"peak_bytes": 1000 + number, "overhead": 0.1 * number} for number in range(5)}
    with opened(path) as journal:
        for key, found in written.items():
            journal.add(key, found)
    content = bytearray(path.read_bytes())
    header = content.index(b"\n") + 1
    content[header + at % (len(content) - header)] ^= 1 << bit
    path.write_bytes(content)
    with opened(path) as journal:
        assert journal.found.items() <= written.items()
        assert len(journal.found) >= 3, "a line, or two where the end of one is gone"
        assert journal.damaged or len(journal.found) == 4, "the last line may have lost its end"


def test_a_sweep_computes_what_is_damaged_anew_and_says_how_much(tmp_path):
    output = tmp_path / "out.csv"
    whole = sweep(TEN, output, HERE)
    text = journal_of(output).read_text(encoding="ascii")
    peak = str(whole.rows[3]["peak_bytes"])
    journal_of(output).write_text(text.replace(peak, f"9{peak[1:]}", 1), encoding="ascii")
    again = sweep(TEN, output, HERE)
    assert (again.computed, again.damaged, again.rows) == (1, 1, whole.rows)


def test_a_result_with_other_columns_is_computed_again(tmp_path):
    output = tmp_path / "out.csv"
    with opened(journal_of(output)) as journal:
        journal.add(tasks_of(TEN)[0].key, {"peak_bytes": 1})
    summary = sweep(TEN, output, HERE)
    assert summary.computed == 10
    assert summary.rows[0]["peak_bytes"] > 1


@pytest.mark.parametrize("content", [b"mine", b'{"journal": "other/1"}\n', b"\n"])
def test_a_file_that_is_no_journal_is_not_touched(tmp_path, content):
    path = tmp_path / "out.csv.journal"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a journal"):
        sweep(TEN, tmp_path / "out.csv", HERE)
    assert path.read_bytes() == content


def test_two_sweeps_do_not_write_the_same_table(tmp_path):
    output = tmp_path / "out.csv"
    with opened(journal_of(output)), pytest.raises(UsageError, match="another sweep is writing"):
        sweep(TEN, output, HERE)
    assert sweep(TEN, output, HERE).computed == 10


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    output, write = tmp_path / "out.csv", os.write
    monkeypatch.setattr("graphsim.answers.sweep.journal.os.write", lambda fd, line: write(fd, line[:-5]))
    with pytest.raises(UsageError, match="the disk is full"):
        sweep(TEN, output, HERE)
    assert journal_of(output).read_bytes() == b""
    monkeypatch.undo()
    assert sweep(TEN, output, HERE).computed == 10


@pytest.mark.parametrize("stop", range(1, 11, 3))
def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, stop):
    output = tmp_path / "out.csv"
    undisturbed = sweep(TEN, tmp_path / "other.csv", HERE)

    def interrupt(done: int, total: int) -> None:
        assert total == 10
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(TEN, output, HERE, progress=interrupt)
    assert len(kept(output)) == stop
    assert not output.exists()
    seen: list[int] = []
    resumed = sweep(TEN, output, HERE, progress=lambda done, total: seen.append(done))
    assert (resumed.computed, resumed.reused) == (10 - stop, stop)
    assert seen == list(range(stop, 11))
    assert sorted(kept(output)) == sorted({task.key for task in tasks_of(TEN)})
    assert resumed.rows == undisturbed.rows
    assert output.read_bytes() == (tmp_path / "other.csv").read_bytes()


class Fragile(Executor):
    """An executor in this process that breaks, with all that it has, at some points."""

    def __init__(self, deadly: set[int], opened: list[Fragile]) -> None:
        self.deadly, self.pending, self.broken = deadly, [], False
        opened.append(self)

    def submit(self, evaluate, task):
        if self.broken:
            raise BrokenProcessPool
        future: Future[Outcome] = Future()
        self.pending.append((future, task))
        if dict(task.point.params)["batch"] in self.deadly:
            self.broken = True
            for waiting, _ in self.pending:
                waiting.set_exception(BrokenProcessPool())
        elif len(self.pending) > 1:
            oldest, its_task = self.pending.pop(0)
            oldest.set_result(evaluate(its_task))
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.finish()

    def finish(self):
        while self.pending and not self.broken:
            future, task = self.pending.pop()
            future.set_result(evaluate(task))


def fragile(deadly: set[int], monkeypatch) -> tuple[Workers, list[Fragile]]:
    made: list[Fragile] = []
    wait = workers_module.wait

    def finish_and_wait(pending, **options):
        made[-1].finish()
        return wait(pending, **options)

    monkeypatch.setattr(workers_module, "wait", finish_and_wait)

    @contextmanager
    def executor():
        yield Fragile(deadly, made)

    return Workers(executor, slots=3), made


def test_a_point_that_kills_its_worker_takes_no_other_with_it_and_is_tried_again(tmp_path, monkeypatch):
    workers, executors = fragile({4, 9}, monkeypatch)
    summary = sweep(TEN, tmp_path / "out.csv", workers)
    assert [bool(row["error"]) for row in summary.rows] == [batch in (4, 9) for batch in range(1, 11)]
    assert "its worker died" in summary.rows[3]["error"]
    assert len(executors) > 3
    assert len(kept(tmp_path / "out.csv")) == 8
    again = sweep(TEN, tmp_path / "out.csv", HERE)
    assert (again.computed, again.failed) == (2, 0)


def test_workers_that_never_find_anything_end_the_sweep(tmp_path, monkeypatch):
    workers, executors = fragile(set(range(1, 11)), monkeypatch)
    with pytest.raises(UsageError, match="the workers die before they find anything"):
        sweep(TEN, tmp_path / "out.csv", workers)
    assert len(executors) == workers_module.VAIN_ROUNDS


def test_a_lack_of_memory_is_no_property_of_a_point(tmp_path, monkeypatch):
    def short_of_memory(task):
        if dict(task.point.params)["batch"] == 3:
            raise MemoryError
        return evaluate(task)

    monkeypatch.setattr(workers_module, "evaluate", short_of_memory)
    summary = sweep(TEN, tmp_path / "out.csv", replace(HERE, died=(MemoryError,)))
    assert [row["batch"] for row in summary.rows if row["error"]] == [3]
    monkeypatch.undo()
    assert sweep(TEN, tmp_path / "out.csv", HERE).computed == 1


def test_workers_of_another_version_are_refused(tmp_path, monkeypatch):
    def older(task):
        outcome = evaluate(task)
        return replace(outcome, found={**outcome.found, "graphsim": "0.0.9"})

    monkeypatch.setattr(workers_module, "evaluate", older)
    with pytest.raises(UsageError, match=r"a worker has graphsim 0\.0\.9"):
        sweep(TEN, tmp_path / "out.csv", HERE)
    assert kept(tmp_path / "out.csv") == []


COMMAND = [sys.executable, "-m", "graphsim", "sweep", "gpt2", "--set", "layers=2", "--batch", "1,2,3,4,5,6,7,8"]
COMMAND += ["--seq", "64,128,256", "--optimizer", "adamw,sgd", "--jobs", "2"]


def start(output) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "-o", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def running(session: int) -> list[str]:
    """Return the states of the processes of a session that have not ended."""
    listed = subprocess.run(["ps", "-s", str(session), "-o", "stat="], capture_output=True, text=True, check=False)
    return [state for state in listed.stdout.split() if not state.startswith("Z")]


@pytest.mark.parametrize("times", only([1], [1, 4]))
def test_a_sweep_that_is_killed_again_and_again_ends_with_every_row_once(tmp_path, times):
    output, journal, generator = tmp_path / "out.csv", tmp_path / "out.csv.journal", random.Random(0)
    for lines in sorted(generator.sample(range(1, 45), times)):
        before = journal.read_bytes() if journal.exists() else b""
        process = start(output)
        wait_until(lambda lines=lines: journal.exists() and journal.read_bytes().count(b"\n") >= lines)
        time.sleep(generator.uniform(0, 0.02))
        process.kill()
        process.communicate()
        assert journal.read_bytes().startswith(before[: before.rfind(b"\n") + 1]), "no result is lost"
        wait_until(lambda process=process: not running(process.pid))
        assert not output.exists()
    process = start(output)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    points = grid(
        [
            [{"source": "gpt2"}],
            [{"batch": b} for b in range(1, 9)],
            [{"seq": s} for s in (64, 128, 256)],
            [{"layers": 2}],
            [{"optimizer": o} for o in ("adamw", "sgd")],
        ]
    )
    assert sorted(kept(output)) == sorted(task.key for task in tasks_of(points))
    sweep(points, tmp_path / "undisturbed.csv", HERE)
    assert output.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_says_how_to_go_on_and_leaves_no_worker(tmp_path):
    output, journal = tmp_path / "out.csv", tmp_path / "out.csv.journal"
    process = start(output)
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == f"interrupted; finished points are in {journal}: the same command goes on from there\n"
    wait_until(lambda: not running(process.pid))
    assert len(kept(output)) >= 3


def test_a_dask_cluster_makes_the_same_table(tmp_path):
    distributed = pytest.importorskip("distributed")
    points = [*TEN, Point(source="nosuch")]
    here = sweep(points, tmp_path / "here.csv", HERE)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        there = sweep(points, tmp_path / "there.csv", dask_cluster(cluster.scheduler_address))
    assert there.computed == 11
    assert there.rows == here.rows
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


def test_a_scheduler_that_does_not_answer_is_an_error(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers_module, "SECONDS_TO_CONNECT", 0.2)
    with pytest.raises(UsageError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        dask_cluster("tcp://127.0.0.1:1")
