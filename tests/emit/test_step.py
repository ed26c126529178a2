"""Steps that run by a plan: gradients, masks and statistics equal to the bit, peak and repeated ops the plan's."""

from __future__ import annotations

import gc
import random
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest
from exhaustive import only

torch = pytest.importorskip("torch")

import emitted_models  # noqa: E402
import planned_models  # noqa: E402
import step_models  # noqa: E402
from emitted import load  # noqa: E402
from torch.profiler import record_function  # noqa: E402
from torch_memory import measure  # noqa: E402

from graphsim.core.graph import Phase  # noqa: E402
from graphsim.core.schedule import Schedule  # noqa: E402
from graphsim.core.simulation import simulate  # noqa: E402
from graphsim.emit.capture import captured_source  # noqa: E402
from graphsim.emit.step import emit_step  # noqa: E402
from graphsim.errors import UsageError  # noqa: E402
from graphsim.recompute.case import Case  # noqa: E402
from graphsim.recompute.emittable import make_emittable  # noqa: E402
from graphsim.recompute.moves.repair import repair  # noqa: E402
from graphsim.recompute.plan import judge, make_plan  # noqa: E402
from graphsim.recompute.reordered import make_reordered  # noqa: E402
from graphsim.sources import source_of  # noqa: E402
from graphsim.step.training import Training  # noqa: E402

REAL = [f"planned_models:{name}" for name in ("resnet", "gpt2", "unet", "llama")]
MORE = [f"emitted_models:{name}" for name in ("perceptron", "transformer", "overwriting", "shared", "fused")]
MORE += [
    f"step_models:{name}" for name in ("named_batch", "tables", "twice_used", "custom", "overlapping", "evaluating")
]
UNSEEN = {"hold", "update_running_stats"}


@cache
def captured(name: str, **options):
    return captured_source(source_of(f"torch:{name}"), Training(optimizer="sgd", target="cpu", **options))


def greedy(case: Case, budget: int | None = None) -> Schedule:
    """The greedy plan; where it does not fit, the least that it reaches."""
    return case.problem.schedule(repair(case.program_order, budget).nodes)


@cache
def emission(name: str, share: float, **options):
    source = captured(name, **options)
    return emit_step(source, make_emittable(source.graph, greedy, int(share * simulate(source.graph).peak)))


def made(name: str):
    """The model, its batch, and a function of both that returns the loss."""
    module, _, factory = name.partition(":")
    built = getattr(
        {"planned_models": planned_models, "emitted_models": emitted_models}.get(module, step_models), factory
    )()
    if isinstance(built, dict):
        return built["model"], built["inputs"], built.get("loss", lambda output: output)
    return *built, lambda output: output if output.dim() == 0 else output.mean()


def trained(name: str, step=None, autocast=None):
    """Two steps from one seed, in ranges of the profiler; return losses, gradients and state of both."""
    torch.manual_seed(0)
    model, batch, loss_of = made(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False)
    found = []
    for number in range(2):
        with record_function(f"##{number}"):
            optimizer.zero_grad(set_to_none=True)
            if step is None:
                with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                    loss = loss_of(model(**batch) if isinstance(batch, dict) else model(batch))
                loss.backward()
            else:
                loss = step(model, **batch) if isinstance(batch, dict) else step(model, batch)
            optimizer.step()
        gradients = {path: p.grad.clone() for path, p in model.named_parameters() if p.grad is not None}
        found.append(
            {"loss": loss.detach().clone()} | gradients | {k: v.clone() for k, v in model.state_dict().items()}
        )
        gc.collect()
    return found


def assert_same(eager, planned):
    for before, after in zip(eager, planned, strict=True):
        assert before.keys() == after.keys()
        assert [key for key in before if not torch.equal(before[key], after[key])] == []


@pytest.mark.parametrize(
    ("name", "share"),
    only([(REAL[0], 0.6), (REAL[1], 0.6), (REAL[2], 0.8), (REAL[3], 0.8)], [(n, s) for n in REAL for s in (0.8, 0.6)]),
)
def test_nothing_changes_but_the_peak_which_is_at_most_the_plans(name, share, tmp_path):
    emitted = emission(name, share)
    step = load(emitted.text, tmp_path).step
    assert emitted.again
    assert emitted.plan.peak_bytes < 0.85 * emitted.stored_peak
    assert emitted.verified_peak <= emitted.plan.peak_bytes
    assert_same(trained(name), trained(name, step))
    unmodelled = measure(lambda: trained(name))["0"].peak - emitted.stored_peak
    peak = measure(lambda: trained(name, step))["0"].peak
    assert peak - max(0, unmodelled) <= 1.02 * emitted.plan.peak_bytes


@pytest.mark.parametrize("name", only([MORE[0], MORE[2], *MORE[5:]], MORE))
def test_steps_of_all_kinds_are_the_same_to_the_bit(name, tmp_path):
    emitted = emission(name, 0.7)
    assert emitted.again or name == MORE[2], "whose blocks overwrite what they are given"
    assert_same(trained(name), trained(name, load(emitted.text, tmp_path).step))


def test_what_autocast_casts_is_cast(tmp_path):
    emitted = emission(REAL[1], 0.6, precision="amp-bf16")
    assert "bfloat16" in emitted.text
    step = load(emitted.text, tmp_path).step
    assert_same(trained(REAL[1], autocast=torch.bfloat16), trained(REAL[1], step))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = trained(REAL[1], step)
    assert_same(again, trained(REAL[1], step))


@pytest.mark.parametrize("name", REAL)
def test_the_ops_that_run_again_are_those_of_the_plan(name):
    graph, emitted = captured(name).graph, emission(name, 0.6)
    again = [graph.ops[op] for op in emitted.plan.schedule.ops[emitted.plan.schedule.repeats].tolist()]
    seen = [op.kind for op in again if op.kind not in UNSEEN and not is_view(graph, op)]
    assert emitted.again == Counter(seen)


def is_view(graph, op):
    return not op.mutates and all(graph.tensors[name].storage for name in op.outputs)


def test_an_order_of_lower_peak_is_emitted_too(tmp_path):
    source = captured("step_models:branches")
    stored = simulate(source.graph).peak
    plan = make_emittable(source.graph, "none", make=make_reordered)
    assert plan.peak_bytes < 0.9 * stored
    assert not plan.schedule.repeats.any()
    step = load(emit_step(source, plan).text, tmp_path).step
    assert_same(trained("step_models:branches"), trained("step_models:branches", step))
    assert measure(lambda: trained("step_models:branches", step))["0"].peak <= 1.02 * plan.peak_bytes


def test_plans_for_a_gpu_are_written_without_one():
    source = captured_source(source_of(f"torch:{REAL[1]}"), Training(optimizer="sgd"))
    emitted = emit_step(source, make_emittable(source.graph, greedy, int(0.8 * simulate(source.graph).peak)))
    assert "aten.native_dropout.default" in emitted.text
    assert '@torch.autocast("cuda", enabled=False)' in emitted.text


def test_the_file_needs_no_graphsim_is_short_of_line_and_the_same_each_time(tmp_path, monkeypatch):
    text = emission(REAL[1], 0.6).text
    assert text == emission.__wrapped__(REAL[1], 0.6).text
    assert all(line == line.rstrip() and len(line) <= 120 for line in text.splitlines())
    monkeypatch.setitem(sys.modules, "graphsim", None)
    assert load(text, tmp_path).step


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("emitted_models:convolutional", r"op 'body.0.norm2.*': it reads numbers from tensors"),
        ("emitted_models:checkpointed", "already recomputes"),
        ("step_models:outside", r"reads a tensor \(\(64,\) torch.float32\) that is no parameter, buffer or attribute"),
        ("step_models:two_passes", "more than one forward and one backward pass"),
        ("step_models:listed", "the values of a tensor are read"),
        ("step_models:chance", "draws random numbers in Python"),
        ("step_models:seeded", "sets the random state"),
        ("step_models:conjugated", "put off until its result is read"),
        ("step_models:shared_batch", "'right' and 'left' of the batch share their memory"),
    ],
)
def test_what_cannot_be_written_is_said_before_it_is_planned(name, reason):
    random.seed(0)
    with pytest.raises(UsageError, match=reason) as refused:
        captured(name).program  # noqa: B018
    assert "--emit checkpoints" in str(refused.value) or "already recomputes" in reason


def judged(graph, order):
    return judge(graph, Schedule(np.array(order)), strategy="mine", budget=None, seconds=0)


def test_plans_that_change_what_the_optimizer_does_are_refused():
    source = captured("step_models:two_dropouts")
    graph = source.graph
    forward, last = next(at for at, op in enumerate(graph.ops) if op.kind == "mul"), max(source.program.lines)
    made = {graph.tensors[name].base for name in graph.ops[last].outputs}
    early = next(
        at
        for at, op in enumerate(graph.ops)
        if op.phase is Phase.OPTIMIZER and made.isdisjoint(graph.tensors[name].base for name in op.inputs)
    )
    fused = [*range(last), early, last, *(at for at in range(last + 1, len(graph.ops)) if at != early)]
    for order in ([*range(len(graph.ops)), forward], fused):
        with pytest.raises(UsageError, match="runs ops of the optimizer within the pass"):
            emit_step(source, judged(graph, order))


def test_random_ops_first_run_in_their_order():
    source = captured("step_models:two_draws")
    draws = [at for at, op in enumerate(source.graph.ops) if op.kind == "rand"]
    order = list(range(len(source.graph.ops)))
    order[draws[0]], order[draws[1]] = draws[1], draws[0]
    with pytest.raises(UsageError, match="they would draw other numbers"):
        emit_step(source, judged(source.graph, order))


def test_a_call_that_is_not_as_captured_is_refused(tmp_path):
    source = captured(REAL[3])
    step = load(emit_step(source, make_plan(source.graph, "none")).text, tmp_path).step
    model, batch = planned_models.llama()
    with pytest.raises(ValueError, match="input_0 is"):
        step(model, batch[:1])
    step(model, batch)
    with pytest.raises(ValueError, match="has a gradient"):
        step(model, batch)
    model.zero_grad()
    model.eval()
    with pytest.raises(ValueError, match="mode in which it was captured"):
        step(model, batch)
    with pytest.raises(ValueError, match=r"0.norm1.weight is"):
        step(planned_models.llama(width=128)[0], batch)


def test_a_batch_that_is_a_part_of_another_tensor_is_as_good(tmp_path):
    step = load(emission("emitted_models:perceptron", 0.7).text, tmp_path).step
    model, batch = emitted_models.perceptron()
    both = torch.cat([batch, torch.randn_like(batch)])
    losses = []
    for x in (both[256:], both[256:].clone()):
        torch.manual_seed(0)
        model.zero_grad()
        losses.append(step(model, x))
    assert torch.equal(*losses)
