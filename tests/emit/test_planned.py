"""Steps that run by a plan: gradients, masks and statistics equal to the bit, peak and repeated ops the plan's."""

from __future__ import annotations

import gc
from collections import Counter
from functools import cache

import pytest
from exhaustive import only

torch = pytest.importorskip("torch")

import emitted_models  # noqa: E402
import planned_models  # noqa: E402
from emitted import captured  # noqa: E402
from torch.profiler import record_function  # noqa: E402
from torch_memory import measure  # noqa: E402

from graphsim.core.graph import Phase  # noqa: E402
from graphsim.core.schedule import Schedule  # noqa: E402
from graphsim.core.simulation import simulate  # noqa: E402
from graphsim.emit.capture import captured_source  # noqa: E402
from graphsim.emit.planned import planned_step  # noqa: E402
from graphsim.errors import UsageError  # noqa: E402
from graphsim.recompute.case import Case  # noqa: E402
from graphsim.recompute.moves.repair import repair  # noqa: E402
from graphsim.recompute.plan import judge  # noqa: E402
from graphsim.sources import source_of  # noqa: E402
from graphsim.step.training import Training  # noqa: E402

NAMES = ("resnet", "gpt2", "unet", "llama")
UNSEEN = {"hold", "release", "update_running_stats"}


def loss_of(model, batch):
    return model(batch).mean()


@cache
def graph_of(name: str):
    training = Training(optimizer="sgd", target="cpu")
    return captured_source(source_of(f"torch:planned_models:{name}"), training).graph


@cache
def plan_of(name: str, share: float):
    """The greedy plan for a budget; where it does not fit, the least that it reaches."""
    case = Case(graph_of(name))
    found = repair(case.program_order, int(share * case.stored.peak))
    return judge(case, case.problem.schedule(found.nodes), strategy="repair", budget=None, seconds=0.0)


def trained(name: str, schedule=None):
    """Two steps from one seed, in ranges of the profiler; return losses, gradients and state of both."""
    torch.manual_seed(0)
    model, batch = getattr(planned_models, name)()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False)
    step = None if schedule is None else planned_step(model, loss_of, [batch], graph_of(name), schedule)
    found = []
    for number in range(2):
        with record_function(f"##{number}"):
            optimizer.zero_grad(set_to_none=True)
            if step is None:
                loss = loss_of(model, batch)
                loss.backward()
            else:
                loss = step(batch)
            optimizer.step()
        gradients = {path: p.grad.clone() for path, p in model.named_parameters()}
        found.append(
            {"loss": loss.detach().clone()} | gradients | {k: v.clone() for k, v in model.state_dict().items()}
        )
        gc.collect()
    return found


@pytest.mark.parametrize(
    ("name", "share"),
    only([("resnet", 0.6), ("gpt2", 0.6), ("unet", 0.8), ("llama", 0.8)], [(n, s) for n in NAMES for s in (0.8, 0.6)]),
)
def test_nothing_changes_but_the_peak_which_is_at_most_the_plans(name, share):
    plan = plan_of(name, share)
    assert plan.schedule.repeats.any()
    assert plan.peak_bytes < 0.85 * simulate(graph_of(name)).peak
    eager, planned = trained(name), trained(name, plan.schedule)
    for before, after in zip(eager, planned, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    unmodelled = measure(lambda: trained(name))["0"].peak - simulate(graph_of(name)).peak
    peak = measure(lambda: trained(name, plan.schedule))["0"].peak
    assert peak - max(0, unmodelled) <= 1.02 * plan.peak_bytes


@pytest.mark.parametrize("name", NAMES)
def test_the_ops_that_run_again_are_those_of_the_plan(name):
    graph, plan = graph_of(name), plan_of(name, 0.6)
    model, batch = getattr(planned_models, name)()
    step = planned_step(model, loss_of, [batch], graph, plan.schedule)
    again = [graph.ops[op].kind for op in plan.schedule.ops[plan.schedule.repeats].tolist()]
    assert step.ran_again == Counter(kind for kind in again if kind not in UNSEEN)


def test_recording_leaves_the_model_as_it_is():
    torch.manual_seed(0)
    model, batch = planned_models.resnet()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    planned_step(model, loss_of, [batch], graph_of("resnet"), Schedule.of(graph_of("resnet")))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_run_is_said_beforehand():
    model, batch = emitted_models.convolutional()  # a batch norm of it has momentum=None
    graph = captured("convolutional").graph
    with pytest.raises(UsageError, match="reads a number"):
        planned_step(model, loss_of, [batch], graph, Schedule.of(graph))
    model, batch = planned_models.llama()
    with pytest.raises(UsageError, match="not what the graph was captured from: call 0"):
        planned_step(model, loss_of, [batch], graph_of("resnet"), Schedule.of(graph_of("resnet")))
    graph = graph_of("llama")
    first = [at for at, op in enumerate(graph.ops) if op.phase is Phase.FORWARD]
    with pytest.raises(UsageError, match="does not run every op"):
        planned_step(model, loss_of, [batch], graph, Schedule.of(graph, [graph.ops[at].name for at in first]))


def test_a_call_that_is_not_as_recorded_is_refused():
    model, batch = planned_models.llama()
    step = planned_step(model, loss_of, [batch], graph_of("llama"), Schedule.of(graph_of("llama")))
    with pytest.raises(UsageError, match="batch is not as recorded"):
        step(batch[:1])
    step(batch)
    with pytest.raises(UsageError, match="has a gradient"):
        step(batch)
    model.zero_grad()
    model.eval()
    with pytest.raises(UsageError, match="mode in which it was recorded"):
        step(batch)
