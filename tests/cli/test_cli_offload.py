"""`graphsim plan --offload`: what people and machines read, and what it does not go with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import graphsim

import graphsim as gs
from graphsim.core.links import HOST_LINKS
from graphsim.emit import emit_plan
from graphsim.errors import GraphSimError, UsageError

SMALL = {"batch": 32, "optimizer": "sgd", "options": "seconds=2"}


@pytest.fixture(scope="module")
def answer():
    return gs.plan("resnet18", budget="0.6x", offload=True, **SMALL)


def test_a_plan_that_offloads_says_what_it_copies_and_what_that_saves(answer):
    run = gs.simulate(answer.graph, answer.schedule)
    said = json.loads(answer.to_json())
    assert said["strategy"] == "auto with offload"
    assert said["feasible"]
    assert said["peak_bytes"] == run.peak <= said["budget_bytes"]
    assert said["time"] == run.time
    assert said["overhead"] == pytest.approx(run.time / gs.simulate(answer.graph).time - 1)
    offload = said["offload"]
    assert offload["stays"] == len(answer.schedule.offloads) > 0
    assert offload["link_bytes_per_second"] == HOST_LINKS["pcie4x16"]  # that of an A100
    assert offload["host_peak_bytes"] == run.host_timeline.max()
    assert offload["recompute_alone_time"] > said["time"]
    bytes_of = np.array([tensor.nbytes for tensor in answer.graph.tensors.values()])
    assert offload["copied_bytes"] <= 2 * bytes_of[answer.schedule.offloads.tensor].sum()


def test_a_person_reads_the_same_in_a_few_lines(answer):
    text = str(answer)
    offload = json.loads(answer.to_json())["offload"]
    assert text.startswith("auto with offload: peak ")
    assert f"{answer.overhead:+.2%} time\n" in text
    assert f"a tensor waits on the host {offload['stays']:,} times" in text
    assert "at 31.5 GB/s each way" in text
    alone = offload["recompute_alone_time"] / answer.plan.base_time - 1
    assert f"recompute alone takes {alone:+.2%}" in text
    assert "optimal" not in text


def test_the_command_takes_a_link():
    setting = ("resnet18", "--batch", "32", "--optimizer", "sgd", "--budget", "0.7x", "--options", "seconds=1")
    done = graphsim("plan", *setting, "--link", "200GB/s", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["offload"]["link_bytes_per_second"] == 200e9


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"offload": True, "strategy": "rotor"}, "offload is a choice of --strategy auto alone"),
        ({"offload": True, "allocator": "torch"}, "leave the --allocator out"),
        ({"link": "16"}, "link"),
        ({"offload": True, "target": "cpu"}, "these ops have their costs in flops: give them --costs of a GPU"),
    ],
)
def test_what_offload_does_not_go_with_is_refused(asked, words):
    with pytest.raises(GraphSimError, match=words):
        gs.plan("lenet5", batch=64, budget="0.9x", **asked)


def test_what_does_not_offload_does_not_run_such_a_plan(answer):
    with pytest.raises(UsageError, match="offloads to the host"):
        emit_plan(None, answer.plan)
    done = graphsim("plan", "torch:nowhere:nothing", "--budget", "0.5x", "--offload", "--emit", "torch")
    assert done.returncode == 2
    assert "does not write offload" in done.stderr
