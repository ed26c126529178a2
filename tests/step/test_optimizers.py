"""The update of every optimizer in every form, against the live bytes of torch.optim to the byte."""

from __future__ import annotations

import pytest
from torch_memory import Measured, measure

from graphsim import simulate
from graphsim.core.graph import Graph, Phase, Role
from graphsim.errors import UnknownNameError, UsageError
from graphsim.step.ops.tape import Tape
from graphsim.step.optimizers import OPTIMIZERS, implementation_of, update
from graphsim.step.training import Training

torch = pytest.importorskip("torch")
published = pytest.importorskip("published")
optim = torch.optim

UNEVEN = ((1000, 700), (3,), (500, 500), ())
GROWING = ((7,), (16, 8, 3, 3), (400,), (300, 200), (5, 1), (4095,), (4097,))
FLAGS = {"forloop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


TORCH = {
    "sgd": lambda params, **flags: optim.SGD(params, 0.1, **flags),
    "momentum": lambda params, **flags: optim.SGD(params, 0.1, momentum=0.9, **flags),
    "nesterov": lambda params, **flags: optim.SGD(params, 0.1, momentum=0.9, nesterov=True, **flags),
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "amsgrad": lambda params, **flags: optim.Adam(params, amsgrad=True, **flags),
    "adagrad": optim.Adagrad,
    "rmsprop": optim.RMSprop,
    "adafactor": optim.Adafactor,
    "lion": lambda params, **flags: published.Lion(params),
    "adam8bit": lambda params, **flags: published.Adam8bit(params),
}
FORMS = [(name, form) for name in TORCH for form in OPTIMIZERS[name].implementations]


def measured_steps(name, form, shapes, dtype=torch.float32):
    """Return what torch holds in steps 1 and 2 when all gradients are there."""

    def run():
        params = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
        optimizer = TORCH[name](params, **FLAGS[form])
        for step in ("1", "2"):
            for param in params:
                param.grad = torch.zeros(param.shape, dtype=dtype)
            with torch.profiler.record_function("##" + step):
                optimizer.step()
            optimizer.zero_grad()

    steps = measure(run)
    return steps["1"], steps["2"]


def simulated_steps(name, form, shapes, dtype="float32", target="cpu"):
    return tuple(simulated(name, form, shapes, dtype, target, first=first) for first in (True, False))


def simulated(name, form, shapes, dtype, target, *, first):
    sim = simulate(step_graph(name, form, shapes, dtype, target, first=first))
    return Measured(sim.peak, sim.phase_end_bytes(Phase.OPTIMIZER))


def step_graph(name, form, shapes, dtype, target, *, first):
    tape = Tape(target)
    tape.phase = Phase.OPTIMIZER
    params = [tape.source(f"{i}.weight", shape, dtype, Role.PARAMETER) for i, shape in enumerate(shapes)]
    grads = {p.name: tape.source(f"{p.name}.grad", p.shape, dtype, Role.GRADIENT) for p in params}
    states = update(tape, name, form, params, grads, first=first)
    return Graph(tape.ops, tape.tensors.values(), outputs=[t.name for t in (*grads.values(), *states)])


@pytest.mark.parametrize("shapes", [UNEVEN, GROWING], ids=["uneven", "growing"])
@pytest.mark.parametrize(("name", "form"), FORMS, ids=["-".join(form) for form in FORMS])
def test_peak_and_states_are_those_of_torch(name, form, shapes):
    assert simulated_steps(name, form, shapes) == measured_steps(name, form, shapes)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize(("name", "form"), FORMS, ids=["-".join(form) for form in FORMS])
def test_peak_and_states_of_16_bit_parameters(name, form):
    ours = simulated_steps(name, form, UNEVEN, "bfloat16")
    with torch.backends.mkldnn.flags(enabled=False):  # whose scratch for 16-bit products depends on the processor
        assert ours == measured_steps(name, form, UNEVEN, torch.bfloat16)


def test_every_optimizer_is_compared_here():
    assert set(OPTIMIZERS) == set(TORCH)


def test_adam8bit_on_cuda_needs_its_states_only_a_byte_and_a_share_of_a_scale_per_element():
    large, small = 4097, 4095
    quantized = 2 * (large + 4 * 17)  # ceil(4097 / 256) blocks
    plain = 2 * 4 * small
    books = 2 * 256 * 4
    first, later = simulated_steps("adam8bit", "forloop", ((large,), (small,)), "bfloat16", "cuda")
    weights_and_gradients = 2 * 2 * (large + small)
    assert first == later == Measured(*[weights_and_gradients + quantized + plain + books] * 2)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_counters_of_a_cuda_optimizer_live_on_the_host_unless_it_is_fused(name):
    for form in OPTIMIZERS[name].implementations:
        graph = step_graph(name, form, UNEVEN, "float32", "cuda", first=False)
        counters = [t for t in graph.tensors if t.endswith(".step")]
        assert bool(counters) == (form == "fused" and OPTIMIZERS[name].counter)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_default_form_exists(name, target):
    assert Training(optimizer=name, target=target).implementation in OPTIMIZERS[name].implementations


def test_torch_prefers_foreach_on_cuda_but_for_adafactor():
    assert implementation_of("adamw", "", "cuda") == "foreach"
    assert implementation_of("adamw", "", "cpu") == "forloop"
    assert implementation_of("adafactor", "", "cuda") == "forloop"


def test_a_form_that_does_not_exist_is_an_error_that_names_those_that_do():
    with pytest.raises(UsageError, match="rmsprop has no fused form; it has: forloop, foreach"):
        Training(optimizer="rmsprop", optimizer_impl="fused")
    with pytest.raises(UnknownNameError, match="adamw"):
        Training(optimizer="adamv")
    with pytest.raises(UnknownNameError, match="foreach"):
        Training(optimizer_impl="foreech")
