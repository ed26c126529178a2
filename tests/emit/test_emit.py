"""What is written for a plan, what is refused, and the command."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import emitted_models  # noqa: E402
from command_line import graphsim  # noqa: E402
from emitted import captured, emission, load  # noqa: E402

from graphsim.core.simulation import simulate  # noqa: E402
from graphsim.emit import emit_plan, emit_within  # noqa: E402
from graphsim.emit.capture import captured_source  # noqa: E402
from graphsim.errors import InfeasibleError, UsageError  # noqa: E402
from graphsim.options import configure  # noqa: E402
from graphsim.recompute.plan import make_plan  # noqa: E402
from graphsim.recompute.strategies import STRATEGIES  # noqa: E402
from graphsim.sources import source_of  # noqa: E402
from graphsim.step.training import Training  # noqa: E402


def test_the_file_needs_no_graphsim_and_is_the_same_each_time(tmp_path):
    first = emission("convolutional", "every_k")
    second = emission.__wrapped__("convolutional", "every_k")
    assert first.text == second.text
    assert f"{first.plan.peak_bytes:,} bytes" in first.text
    assert all(line == line.rstrip() and len(line) <= 120 for line in first.text.splitlines())
    path = tmp_path / "checkpoint_plan.py"
    path.write_text(first.text)
    code = "import sys; sys.modules['graphsim'] = None; import checkpoint_plan; print(*checkpoint_plan.MODULES)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.split() == list(first.wrapped)


def test_a_model_with_a_plan_can_be_copied_evaluated_and_given_the_plan_twice(tmp_path):
    plan = load(emission("perceptron", "blocks").text, tmp_path)
    model, inputs = emitted_models.perceptron()
    plan.apply(plan.apply(model))
    assert type(model.blocks[0]).__mro__[1] is emitted_models.Block
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.blocks[0].up.weight.zero_()
        assert not torch.equal(twin.eval()(inputs), model.eval()(inputs))


@pytest.mark.exhaustive
def test_a_search_takes_as_few_modules_as_the_budget_asks_for():
    source = captured("perceptron")
    stored = simulate(source.graph).peak
    sizes = []
    for share in (1.0, 0.9, 0.7):
        made = emit_within(source, int(share * stored))
        assert made.plan.feasible
        sizes.append(len(made.wrapped))
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert 0 < sizes[1] < sizes[-1]


def test_an_op_level_plan_becomes_a_policy_that_names_the_ops_to_store():
    made = emission("transformer", "greedy")
    stored = [op for saved in made.wrapped.values() for op in saved]
    assert stored
    assert "create_selective_checkpoint_contexts" in made.text
    assert all(f'"{op}"' in made.text for op in stored)
    assert made.scheduled_peak is not None


def test_plans_for_a_gpu_are_made_without_one():
    source = captured_source(source_of("torch:emitted_models:fused"), Training(optimizer="sgd"))
    stored = simulate(source.graph).peak
    made = emit_within(source, int(0.8 * stored))
    assert made.plan.peak_bytes <= 0.8 * stored
    assert 'preserve_rng_state": True' in made.text


def test_where_nothing_fits_the_smallest_peak_is_named():
    source = captured("perceptron")
    with pytest.raises(InfeasibleError, match=r"the smallest peak found is 2,\d{3},\d{3} bytes"):
        emit_within(source, 1000)


def test_modules_that_overwrite_what_they_are_given_are_left_alone():
    with pytest.raises(InfeasibleError, match="no checkpoints of modules fit"):
        emit_within(captured("overwriting"), 1000)


def test_plans_that_checkpoints_cannot_express_are_refused_with_what_can_be():
    source = captured("perceptron")
    plan = make_plan(source.graph, configure(STRATEGIES["revolve"], "slots=1"))
    with pytest.raises(UsageError, match=r"runs op '.*' \d+ times, and a checkpoint runs it twice"):
        emit_plan(source, plan)
    with pytest.raises(UsageError, match="already recomputes"):
        emit_within(captured("checkpointed"), 1000)


def test_the_command_writes_the_file_and_tells_the_peak(tmp_path):
    source = ("torch:emitted_models:perceptron", "--optimizer", "sgd", "--target", "cpu", "--emit", "checkpoints")
    here = emitted_models.__file__.rpartition("/")[0]
    run = graphsim("plan", *source, "--budget", "0.7x", "-o", str(tmp_path / "plan.py"), "--json", cwd=here)
    told = json.loads(run.stdout)
    assert told["feasible"]
    assert told["peak_bytes"] <= told["budget_bytes"] < told["emitted"]["stored_peak_bytes"]
    plan = load((tmp_path / "plan.py").read_text(), tmp_path)
    assert list(plan.MODULES) == told["emitted"]["modules"]


def test_the_very_plan_is_written_too(tmp_path):
    source = ("torch:emitted_models:perceptron", "--optimizer", "sgd", "--target", "cpu", "--emit", "torch")
    here, file = emitted_models.__file__.rpartition("/")[0], tmp_path / "by_plan.py"
    asked = (*source, "--budget", "0.7x", "--options", "seconds=1", "-o", str(file))
    told = json.loads(graphsim("plan", *asked, "--json", cwd=here).stdout)
    assert told["feasible"]
    assert told["emitted"]["verified_peak_bytes"] <= told["peak_bytes"] <= told["budget_bytes"]
    assert sum(told["emitted"]["again"].values()) > 0
    assert "loss = by_plan.step(model, input_0)" in file.read_text()
    model, x = emitted_models.perceptron()
    assert load(file.read_text(), tmp_path).step(model, x).dim() == 0
    assert all(p.grad is not None for p in model.parameters())
    refused = graphsim("plan", *source, "--budget", "0.01x", cwd=here)
    assert (refused.returncode, "no plan within" in refused.stderr) == (1, True)


def test_the_command_prints_the_file_and_what_it_does_beside_it():
    here = emitted_models.__file__.rpartition("/")[0]
    printed = graphsim(
        "plan", "torch:emitted_models:perceptron", "--emit", "checkpoints", "--strategy", "blocks", cwd=here
    )
    assert printed.stdout.startswith('"""Activation checkpoints for emitted_models:perceptron')
    assert "verified" in printed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt2", "--emit", "torch", "--budget", "0.5x"), "gpt2 is no PyTorch model"),
        (("gpt2", "--emit", "jax", "--budget", "0.5x"), "write --emit torch"),
        (("gpt2", "-o", "x.py", "--budget", "0.5x"), "--output is for --emit torch"),
        (("torch:a:b", "--emit", "torch", "--first", "--budget", "0.5x"), "leave --first out"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left_behind(arguments, message, tmp_path):
    run = graphsim("plan", *arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())


def test_without_emit_the_models_schedule_is_planned():
    here = emitted_models.__file__.rpartition("/")[0]
    run = graphsim("plan", "torch:emitted_models:perceptron", "--strategy", "blocks", "--json", cwd=here)
    assert json.loads(run.stdout)["overhead"] > 0
