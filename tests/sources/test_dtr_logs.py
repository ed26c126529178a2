"""DTR operator logs: what each instruction means for memory, and what is wrong with a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import graphsim

import graphsim as gs
from graphsim.core.graph import RELEASE, Phase
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import op_costs, simulate
from graphsim.errors import ScheduleError, SpecError, UnknownNameError
from graphsim.recompute.dtr.scores import HEURISTICS
from graphsim.recompute.matrices import matrices_of_schedule, schedule_of_matrices
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies import STRATEGIES
from graphsim.recompute.strategies.auto import Auto
from graphsim.recompute.strategies.checkmate import Checkmate
from graphsim.recompute.strategies.dtr import simulate_log


def constant(name: str, nbytes: int) -> list[dict]:
    return [{"INSTRUCTION": "CONSTANT", "NAME": name}, {"INSTRUCTION": "MEMORY", "NAME": name, "MEMORY": str(nbytes)}]


def call(name: str, args: str, results: dict[str, tuple[int, int]], time: float = 1) -> list[dict]:
    lines: list[dict] = [
        {"INSTRUCTION": "CALL", "NAME": name, "ARGS": args.split(), "RESULT": list(results), "TIME": str(time)}
    ]
    for result, (nbytes, alias) in results.items():
        lines.append({"INSTRUCTION": "MEMORY", "NAME": result, "MEMORY": str(nbytes)})
        lines.append({"INSTRUCTION": "ALIAS", "NAME": result, "ALIAS": str(alias)})
    return lines


def release(*names: str) -> list[dict]:
    return [{"INSTRUCTION": "RELEASE", "NAME": name} for name in names]


def write(path: Path, *lines: list[dict]) -> Path:
    file = path / "model.log"
    file.write_text("".join(json.dumps(entry) + "\n" for part in lines for entry in part))
    return file


START = [{"INSTRUCTION": "ANNOTATE", "ANNOTATION": "START"}]


def timeline(graph: gs.Graph) -> list[tuple[str, int]]:
    run = simulate(graph)
    return [(op.kind, int(live)) for op, live in zip(graph.ops, run.timeline, strict=True)]


def test_a_tensor_lives_from_its_call_to_its_release(tmp_path):
    log = write(
        tmp_path,
        constant("before", 1000),
        START,
        constant("w", 100),
        call("f", "w", {"x": (10, -1)}, 3),
        call("g", "x", {"y": (20, -1), "m": (5, -1)}, 4),
        release("m"),
        call("h", "y", {"z": (1, -1)}),
        release("x"),
        call("i", "z", {"u": (2, -1)}),
        release("y", "z", "u"),
    )
    graph = gs.load(log)
    # x is last read by g and released after h: a release keeps it. y is released after i, z read there.
    assert timeline(graph) == [
        ("constant", 100),
        ("f", 110),
        ("g", 135),
        ("h", 131),
        ("release", 131),
        ("i", 123),
        ("release", 120),
    ]
    assert op_costs(graph).tolist() == [0, 3, 4, 1, 0, 1, 0]
    assert graph.outputs == ("w",)
    assert simulate(graph, policy="liveness").peak == 135


def test_copies_are_references_and_copy_from_moves_one(tmp_path):
    lines = [
        *START,
        *call("f", "", {"x": (10, -1)}),
        {"INSTRUCTION": "COPY", "DST": "x2", "SRC": "x"},
        *release("x"),
        *call("g", "", {"y": (1, -1)}),
        {"INSTRUCTION": "COPY_FROM", "DST": "x2", "SRC": "y"},
        *call("h", "x2", {"z": (1, -1)}),
        *release("y", "x2", "z"),
    ]
    graph = gs.load(write(tmp_path, lines))
    assert timeline(graph) == [("f", 10), ("g", 11), ("release", 11), ("h", 2)]
    assert graph.ops[-1].inputs == ("y",)


def test_what_has_a_name_at_the_end_survives_in_the_order_of_all_names(tmp_path):
    """The simulator brings them back in this order, and a name that is let go keeps its place."""
    copy = {"INSTRUCTION": "COPY", "DST": "c", "SRC": "x"}
    lines = [*START, *call("f", "", {"x": (1, -1)}), *call("f", "", {"y": (1, -1)}), copy, *release("x")]
    assert gs.load(write(tmp_path, lines)).outputs == ("x", "y")
    lines += [{"INSTRUCTION": "COPY_FROM", "DST": "c", "SRC": "y"}, *call("f", "", {"z": (1, -1)})]
    assert gs.load(write(tmp_path, lines)).outputs == ("y", "z")


def test_a_view_is_free_and_keeps_its_base(tmp_path):
    lines = [*START, *call("f", "", {"x": (10, -1)}), *call("view", "x", {"v": (0, 0)}), *release("x")]
    lines += [*call("g", "", {"y": (1, -1)}), *call("h", "v", {"z": (1, -1)}), *release("v", "y", "z")]
    graph = gs.load(write(tmp_path, lines))
    assert timeline(graph) == [("f", 10), ("view", 10), ("g", 11), ("h", 12), ("release", 1)]


def test_a_mutation_overwrites_or_copies(tmp_path):
    mutate = {"INSTRUCTION": "MUTATE", "NAME": "add_", "ARGS": ["x", "y"], "MUTATE": [0], "TIME": 2}
    lines = [*START, *call("f", "", {"x": (10, -1)}), *call("g", "", {"y": (10, -1)}), mutate]
    log = write(tmp_path, lines, release("y"), call("h", "x", {"z": (1, -1)}), release("x", "z"))
    assert timeline(gs.load(log)) == [("f", 10), ("g", 20), ("add_", 20), ("h", 11)]
    assert gs.load(log).ops[2].mutates == ("x",)
    copied = gs.load(log, mutations="copy")
    assert timeline(copied) == [("f", 10), ("g", 20), ("add_", 30), ("h", 11)]
    assert not any(op.mutates for op in copied.ops)
    with pytest.raises(UnknownNameError, match="'copy'"):
        gs.load(log, mutations="cpoy")


def test_backward_begins_where_its_name_or_an_annotation_says(tmp_path):
    lines = [*START, *call("f", "", {"x": (1, -1)}), *call("f_backward", "x", {"g": (1, -1)})]
    graph = gs.load(write(tmp_path, lines, call("add", "g", {"h": (1, -1)})))
    assert [op.phase for op in graph.ops] == [Phase.FORWARD, Phase.BACKWARD, Phase.BACKWARD]
    lines[3:] = [{"INSTRUCTION": "ANNOTATE", "ANNOTATION": "BACKWARD"}, *call("f", "x", {"g": (1, -1)})]
    assert gs.load(write(tmp_path, lines)).ops[-1].phase is Phase.BACKWARD


def test_a_constant_cannot_be_made_again(tmp_path):
    graph = gs.load(write(tmp_path, START, constant("w", 5), call("f", "w", {"x": (1, -1)})))
    with pytest.raises(ScheduleError, match="w:origin"):
        _ = simulate(graph, Schedule.of(graph, [graph.ops[0].name, *(op.name for op in graph.ops)])).peak


def chain_log(path: Path, n: int, *, late: bool = False) -> Path:
    """A chain and its backward pass; names are let go after their last use, or only at the end."""
    lines, names = [*START, *constant("x0", 8)], []
    for i in range(1, n + 1):
        lines += call("f", f"x{i - 1}", {f"x{i}": (8, -1)})
    lines += call("loss_backward", f"x{n}", {f"g{n}": (8, -1)})
    for i in range(n, 0, -1):
        lines += call("f_backward", f"g{i} x{i - 1}", {f"g{i - 1}": (8, -1)})
        names += [f"g{i}", f"x{i}"]
        if not late:
            lines += release(*names)
            names = []
    return write(path, lines, release("x0", "g0", *names))


@pytest.mark.parametrize("heuristic", ["dtr", "eqclass", "local", "lru"])
def test_a_log_replays_within_a_budget(tmp_path, heuristic):
    graph = gs.load(chain_log(tmp_path, 40), mutations="copy")
    peak = simulate(graph).peak
    outcome = simulate_log(graph, peak // 2, heuristic)
    assert outcome.finished
    assert outcome.peak <= peak // 2
    assert outcome.overhead > 0
    assert outcome.base_time == 81
    assert not simulate_log(graph, 20, heuristic).finished


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "none"])
def test_a_plan_evicts_what_only_a_name_keeps(tmp_path, name):
    """DTR may, so it is given the same: a name holds the first value up to the end, and nothing else is in the way."""
    lines = [
        *START,
        *call("f", "", {"x": (100, -1)}),
        *call("f", "x", {"a": (1, -1)}),
        *call("f", "a", {"b": (100, -1)}),
    ]
    graph = gs.load(write(tmp_path, lines, call("f", "b", {"c": (1, -1)}), release("x", "a", "b", "c")))
    assert simulate(graph).peak == 202
    plan = make_plan(graph, name, 102)
    assert plan.feasible
    assert plan.overhead == 0
    assert simulate(graph, plan.schedule).peak == plan.peak_bytes == 101
    assert simulate_log(graph, 102, "dtr").time == plan.time


def test_a_plan_of_a_log_has_matrices(tmp_path):
    """They have no rows for releases, as plans leave those out."""
    graph = gs.load(chain_log(tmp_path, 10, late=True))
    plan = make_plan(graph, Checkmate(), int(0.4 * simulate(graph).peak))
    assert plan.feasible
    r, s = matrices_of_schedule(graph, plan.schedule)
    assert len(r) == len(graph.ops) - sum(op.kind == RELEASE for op in graph.ops) < len(graph.ops)
    assert schedule_of_matrices(r, s, graph=graph) == plan.schedule


def test_operators_of_these_names_are_operators(tmp_path):
    lines = [*START, *call("release", "", {"x": (8, -1)}), *call("hold", "x", {})]
    graph = gs.load(write(tmp_path, lines))
    assert [op.kind for op in graph.ops] == ["call_release", "call_hold"]
    assert not graph.index.hold.any()


def test_other_commands_take_a_log(tmp_path):
    done = graphsim("peak", str(chain_log(tmp_path, 10)), "--json")
    assert done.returncode == 0, done.stderr
    done = graphsim("plan", str(tmp_path / "model.log"), "--budget", "0.5x", "--batch", "3")
    assert (done.returncode, "no params to set" in done.stderr) == (2, True)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("part", [0.9, 0.6, 0.4, 0.3])
def test_auto_needs_no_more_than_the_best_heuristic(tmp_path, late, part):
    log = chain_log(tmp_path, 30, late=late)
    budget = int(part * simulate(gs.load(log)).peak)
    runs = [simulate_log(gs.load(log, mutations="copy"), budget, heuristic, most=2.0) for heuristic in HEURISTICS]
    plan = make_plan(gs.load(log), Auto(seconds=2), budget)
    assert plan.feasible
    assert plan.overhead <= min(run.overhead for run in runs if run.finished) + 1e-9


def test_a_log_can_be_planned(tmp_path):
    done = graphsim("plan", str(chain_log(tmp_path, 30)), "--budget", "0.6x", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["overhead"] > 0


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], ":1: not a line of JSON"),
        (["[]"], ":1: an object with an INSTRUCTION"),
        (['{"INSTRUCTION": "JUMP"}'], ":1: unknown instruction 'JUMP'"),
        (['{"INSTRUCTION": "RELEASE"}'], ":1: no 'NAME'"),
        (['{"INSTRUCTION": "COPY", "DST": "a", "SRC": "b"}'], ":1: 'b' names no tensor"),
        (['{"INSTRUCTION": "MEMORY", "NAME": "a", "MEMORY": "x"}'], ":1: MEMORY must be an integer"),
        (['{"INSTRUCTION": "CONSTANT", "NAME": "a"}'], ":1: 'a' needs a MEMORY"),
        (['{"INSTRUCTION": "CALL", "NAME": "f", "ARGS": ["q"], "RESULT": [], "TIME": 1}'], ":1: 'q' names no tensor"),
        (['{"INSTRUCTION": "CALL", "NAME": "f", "ARGS": [], "RESULT": [], "TIME": "nan"}'], ":1: TIME must be"),
        (['{"INSTRUCTION": "CALL", "NAME": "f", "ARGS": 3, "RESULT": [], "TIME": 1}'], ":1: a list is needed"),
        (['{"INSTRUCTION": "MUTATE", "NAME": "f", "ARGS": [], "MUTATE": [0], "TIME": 1}'], ":1: 'f' mutates"),
        (["", '{"INSTRUCTION": ' + "[" * 5000], ":2: not a line of JSON"),
        (["x" * (2**20 + 1)], ":1: the line has more than"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, lines, words):
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(SpecError) as caught:
        gs.load(file)
    assert str(caught.value).startswith(str(file))
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_error(tmp_path):
    with pytest.raises(SpecError, match="No such file"):
        gs.load(tmp_path / "nowhere.log")
    (tmp_path / "binary.log").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="UTF-8"):
        gs.load(tmp_path / "binary.log")
