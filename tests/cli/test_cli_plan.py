"""The commands that plan: what people and machines read, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest
from command_line import graphsim

import graphsim as gs
from graphsim.recompute.strategies import STRATEGIES

KEYS = {
    "strategy",
    "budget_bytes",
    "peak_bytes",
    "feasible",
    "time",
    "base_time",
    "overhead",
    "lower_bound",
    "lower_bound_bytes",
    "proved_optimal",
    "seconds",
    "schedule_length",
}


@pytest.fixture
def dag(tmp_path: Path) -> str:
    """a (10 bytes) is read at once and at the end; between, a chain of 20 bytes each: peak 50, or 40 with a again."""
    graph = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("a", "e")], order=list("abcde"))
    nx.set_node_attributes(graph, {"a": 10, "b": 20, "c": 20, "d": 20, "e": 5}, "bytes")
    nx.set_node_attributes(graph, {"a": 1, "b": 4, "c": 3, "d": 2, "e": 6}, "time")
    file = tmp_path / "dag.json"
    file.write_text(json.dumps(nx.node_link_data(graph, edges="edges")))
    return str(file)


def test_plan_answers_with_the_cheapest_schedule_that_fits():
    setting = ("resnet18", "--batch", "32", "--optimizer", "sgd")
    done = graphsim("plan", *setting, "--budget", "0.6x", "--options", "seconds=5", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    step = gs.training_step(gs.load("resnet18", batch=32), optimizer="sgd")
    stored = gs.simulate(step)
    assert data.keys() >= KEYS
    assert data["budget_bytes"] == stored.peak * 6 // 10
    assert data["lower_bound_bytes"] <= data["peak_bytes"] <= data["budget_bytes"]
    assert data["base_time"] < data["lower_bound"] <= data["time"]
    assert data["base_time"] == pytest.approx(stored.time)
    assert data["overhead"] == pytest.approx(data["time"] / data["base_time"] - 1)
    assert data["schedule_length"] > len(step.ops)
    for name in ("greedy", "revolve", "dtr"):
        other = json.loads(graphsim("plan", *setting, "--budget", "0.6x", "--strategy", name, "--json").stdout)
        assert other["feasible"]
        assert data["time"] <= other["time"]


def test_a_plan_says_how_far_from_optimal_it_can_be(dag):
    said = graphsim("plan", dag, "--budget", "40B").stdout
    assert "+6.25% compute\n  proved optimal: no plan that keeps the order of ops costs less\n" in said
    assert "optimal: it runs no op twice" in graphsim("plan", dag, "--budget", "50B").stdout
    assert "optimal" not in graphsim("plan", dag, "--strategy", "sqrt").stdout, "of what, without a budget?"
    asked = ("plan", "resnet18", "--optimizer", "sgd", "--budget", "0.7x", "--strategy", "rotor")
    data = json.loads(graphsim(*asked, "--json").stdout)
    gap, floor = data["time"] / data["lower_bound"] - 1, data["lower_bound"] / data["base_time"] - 1
    assert 0 < floor < data["overhead"]
    line = f"  at most {gap:.2%} from optimal: no plan that keeps the order of ops costs less than {floor:+.2%}\n"
    assert line in graphsim(*asked).stdout


def test_compare_lists_every_strategy_with_the_same_keys():
    listed = json.loads(graphsim("compare", "lenet5", "--json").stdout)
    assert [entry["strategy"] for entry in listed] == list(STRATEGIES)
    assert all(entry.keys() >= KEYS for entry in listed)
    assert all(entry["feasible"] and entry["budget_bytes"] is None for entry in listed)


def test_compare_prints_a_table_that_marks_the_pareto_optimal_rows():
    done = graphsim("compare", "resnet18", "--optimizer", "sgd", "--target", "cpu")
    assert done.returncode == 0
    rows = {line.split()[1]: line for line in done.stdout.split("\n\n")[0].splitlines()[1:]}
    assert rows["none"].startswith("A"), "nothing is cheaper"
    assert "FLOP" in rows["none"], "there is no device to take time on"
    assert set(STRATEGIES) == set(rows)
    assert "\x1b[" not in done.stdout
    assert done.stderr == "", "progress is for terminals"


def test_compare_draws_into_a_file_and_refuses_before_it_plans(dag, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "pareto.SVG"
    done = graphsim("compare", dag, "--budget", "40B", "--plot", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == len(STRATEGIES)
    assert file.read_bytes().startswith(b"<?xml")
    refused = graphsim("compare", "llama3_8b", "--plot", str(tmp_path / "pareto.gif"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "*.png or *.svg or *.pdf" in refused.stderr


def test_a_share_of_the_peak_is_a_budget_for_a_networkx_file(dag):
    done = graphsim("plan", dag, "--budget", "1x", "--json")
    data = json.loads(done.stdout)
    assert (data["budget_bytes"], data["peak_bytes"], data["base_time"]) == (50, 50, 16)
    assert data["proved_optimal"]
    assert data["strategy"] == "auto"
    assert data["overhead"] == 0


def test_an_infeasible_budget_gets_a_witness_and_exit_code_1(dag):
    done = graphsim("plan", dag, "--budget", "39B", "--json")
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert not data["feasible"]
    assert data["lower_bound_bytes"] == 40
    assert data["witness"]["lower_bound_bytes"] == 40
    assert data["witness"]["op"] == "c"
    assert {entry["name"]: entry["bytes"] for entry in data["witness"]["pinned_by"]["live"]} == {"b": 20, "c": 20}
    assert data["witness"]["smallest_peak_bytes"] == data["peak_bytes"] >= 40
    text = graphsim("plan", dag, "--budget", "39B")
    assert text.returncode == 1
    assert text.stdout == ""
    assert len(text.stderr.strip().splitlines()) == 1
    assert "proved" in text.stderr
    assert "'c'" in text.stderr


def test_costs_can_be_chosen(dag):
    assert json.loads(graphsim("plan", dag, "--budget", "1x", "--costs", "unit", "--json").stdout)["base_time"] == 5
    flops = json.loads(graphsim("plan", "lenet5", "--budget", "1x", "--costs", "flops", "--json").stdout)
    step = gs.training_step(gs.load("lenet5"))
    assert flops["base_time"] == sum(op.flops for op in step.ops)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "lenet5"), "--budget"),
        (("plan", "lenet5", "--budget", "lots"), "not a size"),
        (("plan", "lenet5", "--budget", "0x"), "at least one byte"),
        (("plan", "lenet5", "--budget", "1x", "--strategy", "sqr"), "'sqrt'"),
        (("plan", "lenet5", "--budget", "1x", "--costs", "a1000"), "a100-80g"),
        (("plan", "lenet5", "--budget", "1x", "--set", "batch"), "NAME=VALUE"),
        (("compare", "nowhere.json"), "No such file"),
        (("compare", "gpt5"), "gpt2"),
    ],
)
def test_bad_command_lines_get_one_line_and_exit_code_2(arguments, words):
    done = graphsim(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_graph_file_has_no_params(dag):
    done = graphsim("plan", dag, "--budget", "1x", "--batch", "3")
    assert done.returncode == 2
    assert "no params" in done.stderr


def test_where_nothing_can_fit_the_json_is_still_json(dag):
    """A bound of the time is infinite there, which JSON cannot say."""
    done = graphsim("plan", dag, "--budget", "39B", "--json")
    assert json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["lower_bound"] is None
