"""The solver in PyTorch's partitioner: against its default solver, brute force, real memory and eager gradients."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from exhaustive import only  # noqa: E402
from live_storages import LiveStorages  # noqa: E402
from torch import fx, nn  # noqa: E402
from torch._functorch import config  # noqa: E402
from torch._functorch.aot_autograd import aot_module_simplified  # noqa: E402
from torch._functorch.compilers import nop  # noqa: E402
from torch._functorch.partitioners import min_cut_rematerialization_partition  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from graphsim.errors import InfeasibleError, UsageError  # noqa: E402
from graphsim.torch_compile import PeakSolver  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:copyreg", "ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
SETTINGS = (0.05, 0.2, 0.4, 0.9)


def _bench():
    spec = importlib.util.spec_from_file_location("compile_budget", ROOT / "bench" / "compile_budget.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compile_budget"] = module
    spec.loader.exec_module(module)
    return module


BENCH = _bench()


@pytest.fixture(autouse=True)
def _own_settings():
    with config.patch(activation_memory_budget=1.0, activation_memory_budget_solver="dp"):
        yield


class Spy(PeakSolver):
    """Keeps what it was asked."""

    asked: tuple[Any, ...] = ()

    def __call__(self, *arguments):
        Spy.asked = arguments
        return super().__call__(*arguments)


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(32, 32), nn.LayerNorm(32), nn.Tanh())


def case(model, *shape: int):
    return BENCH.Case("", model, lambda: torch.randn(shape))


def mlp(layers: int = 8, activation: type[nn.Module] = nn.ReLU):
    return case(lambda: BENCH.MLP(activation, layers, 32), 256, 32)


CASES = {
    "relu": mlp(8),
    "gelu": mlp(8, nn.GELU),
    "conv": case(lambda: BENCH.ResConv(2, 8), 8, 3, 16, 16),
    "gpt": BENCH.Case("", lambda: BENCH.GPT(1, 32, 2, 50, 64), lambda: torch.randint(0, 50, (4, 64))),
    "norms": case(lambda: nn.Sequential(*(Normed() for _ in range(3))), 1024, 32),
}


@pytest.mark.parametrize("name", only(("conv",), CASES))
def test_at_every_setting_it_peaks_no_higher_and_computes_no_more_than_the_default_solver_and_is_monotone(name):
    before = None
    for setting in SETTINGS:
        stock = BENCH.backward(CASES[name], "dp", setting)
        ours = BENCH.backward(CASES[name], PeakSolver(), setting)
        assert ours.peak <= stock.peak
        assert ours.flops <= stock.flops
        assert before is None or (before.peak <= ours.peak and before.flops >= ours.flops)
        before = ours


def test_on_the_mlp_of_32_layers_a_tenth_of_the_budget_peaks_at_least_two_and_a_half_times_lower():
    stock = BENCH.backward(BENCH.CASES["mlp"], "dp", 0.1)
    ours = BENCH.backward(BENCH.CASES["mlp"], PeakSolver(), 0.1)
    assert 2.5 * ours.peak <= stock.peak
    assert ours.flops <= stock.flops


def test_a_setting_between_two_steps_counts_as_the_next_higher_one():
    peaks = {setting: BENCH.backward(CASES["relu"], PeakSolver(), setting).peak for setting in (0.26, 0.3, 0.25)}
    assert peaks[0.26] == peaks[0.3]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("setting", [0.05, 0.25])
def test_the_peak_that_it_predicts_is_that_of_the_real_backward_graph(name, setting, caplog):
    caplog.set_level("INFO", "graphsim.torch_compile.solver")
    config.activation_memory_budget, config.activation_memory_budget_solver = setting, PeakSolver()
    graphs, joints = [], []

    def partition(joint, inputs, **options):
        joints.append(joint)
        graphs.extend(min_cut_rematerialization_partition(joint, inputs, **options))
        return graphs[0], graphs[1]

    torch.manual_seed(0)
    model, inputs = BENCH.Scalar(CASES[name].model()), CASES[name].inputs()
    aot_module_simplified(model, (inputs,), fw_compiler=nop, bw_compiler=nop, partition_fn=partition)
    primals = [*dict(model.named_parameters()).values(), *dict(model.named_buffers()).values(), inputs]
    (predicted,) = [record.peak_bytes for record in caplog.records]
    assert measured(graphs[0], graphs[1], [tensor.detach() for tensor in primals]) == predicted


def measured(forward: fx.GraphModule, backward: fx.GraphModule, primals: list[torch.Tensor]) -> int:
    """Run both graphs for real, as aot_eager does; return the most bytes live in the backward graph."""
    with torch.no_grad():
        results = fx.Interpreter(forward).run(*primals)
        wanted = [node.name for node in backward.graph.find_nodes(op="placeholder")]
        (output,) = forward.graph.find_nodes(op="output")
        values = {node.name: value for node, value in zip(output.args[0], results, strict=True) if node is not None}
        arguments = [torch.ones(()) if "tangents" in name else values[name] for name in wanted]
        del results, values
        counter = LiveStorages([*primals, *arguments])
        start = counter.live
        with counter:
            fx.Interpreter(backward).boxed_run(arguments)
    return max(start, *(max(boundary.before, boundary.after) for boundary in counter.boundaries))


@pytest.mark.parametrize("activation", only([], [nn.ReLU, nn.GELU]))
def test_among_all_subsets_of_a_small_model_it_finds_the_lowest_peak_within_the_default_solvers_time(activation):
    small = mlp(5, activation)
    BENCH.backward(small, Spy(), 0.05)
    number = len(Spy.asked[4])
    assert number in (4, 5)
    subsets = (saved for size in range(number + 1) for saved in itertools.combinations(range(number), size))
    every = [BENCH.backward(small, Fixed(saved), 0.05) for saved in subsets]
    for setting in (0.05, 0.2, 0.4):
        allowed = BENCH.backward(small, "dp", setting).flops
        ours = BENCH.backward(small, PeakSolver(), setting)
        assert ours.peak == min(result.peak for result in every if result.flops <= allowed)


class Fixed(BENCH.PeakSolver):
    """Saves what it was told."""

    def __init__(self, saved):
        super().__init__()
        object.__setattr__(self, "saved", saved)

    def __call__(self, memory, *_):
        return list(self.saved), [place for place in range(len(memory)) if place not in self.saved]


@pytest.mark.exhaustive
def test_a_bound_in_bytes_holds_and_more_bytes_never_cost_more():
    free = BENCH.backward(CASES["relu"], PeakSolver(), 0.05).peak
    largest = BENCH.backward(CASES["relu"], PeakSolver(), 0.9).peak
    flops = []
    for limit in range(free, largest, (largest - free) // 4):
        result = BENCH.backward(CASES["relu"], PeakSolver(peak_bytes=limit), 0.01)
        assert result.peak <= limit
        flops.append(result.flops)
    assert flops == sorted(flops, reverse=True)
    assert flops[0] > flops[-1]


def test_a_bound_that_cannot_be_met_is_refused_with_the_lowest_peak_known():
    lowest = BENCH.backward(CASES["relu"], PeakSolver(), 0.05).peak
    with pytest.raises(InfeasibleError, match=f"the lowest peak is {lowest:,} bytes") as caught:
        BENCH.backward(CASES["relu"], PeakSolver(peak_bytes=lowest - 1), 0.01)
    assert 0 < caught.value.memory_bound <= lowest
    with pytest.raises(UsageError, match="at least 1"):
        PeakSolver(peak_bytes=0)


def with_dropout() -> nn.Module:
    torch.manual_seed(0)
    layers = ((nn.Linear(32, 32), nn.GELU(), nn.Dropout(0.2)) for _ in range(5))
    return nn.Sequential(*itertools.chain(*layers))


def gradients(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)
    model(inputs).pow(2).sum().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("setting", [0.05, 0.3, 0.6])
def test_compiled_gradients_are_those_of_eager_dropout_included(setting):
    inputs = torch.randn(64, 32)
    expected = gradients(with_dropout(), inputs)
    torch._dynamo.reset()
    solver = Spy()
    config.activation_memory_budget, config.activation_memory_budget_solver = setting, solver
    Spy.asked = None
    compiled = gradients(torch.compile(with_dropout(), backend="aot_eager"), inputs)
    assert Spy.asked
    for one, other in zip(compiled, expected, strict=True):
        assert torch.equal(one, other)


def test_ops_that_draw_random_numbers_are_saved_and_attention_without_dropout_is_not_one_of_them():
    from graphsim.torch_compile.joint import is_random

    graph = fx.Graph()
    x = graph.placeholder("x")
    attention = torch.ops.aten._scaled_dot_product_efficient_attention.default
    assert is_random(graph.call_function(torch.ops.aten.native_dropout.default, (x, 0.1, True)))
    assert is_random(graph.call_function(attention, (x, x, x, None, True, 0.1)))
    assert not is_random(graph.call_function(attention, (x, x, x, None, True)))
    assert not is_random(graph.call_function(attention, (x, x, x, None, True, 0.0)))
    assert not is_random(graph.call_function(torch.ops.aten.mm.default, (x, x)))

    dropping = case(with_dropout, 64, 32)
    BENCH.backward(dropping, Spy(), 0.05)
    saved, recomputed = PeakSolver()(*Spy.asked)
    names = [str(Spy.asked[4][place].target) for place in recomputed]
    assert "aten.addmm.default" in names
    assert "aten.native_dropout.default" not in names
    assert sorted(saved + recomputed) == list(range(len(Spy.asked[0])))


def test_times_are_those_of_the_configured_estimator():
    with FakeTensorMode():
        BENCH.backward(mlp(4), Spy(), 0.05)
    from torch._functorch.partitioners import estimate_runtime

    from graphsim.torch_compile.joint import time_of

    nodes = Spy.asked[4]
    assert [time_of(node) for node in nodes] == [estimate_runtime(node) for node in nodes]
    assert max(time_of(node) for node in nodes) == 2 * 256 * 32 * 32
    with config.patch(activation_memory_budget_runtime_estimator="testing"):
        assert [time_of(node) for node in nodes] == [1.0] * len(nodes)


def test_the_caches_of_compiled_graphs_tell_solvers_apart():
    assert PeakSolver().uuid() == PeakSolver().uuid()
    assert PeakSolver().uuid() != PeakSolver(peak_bytes=10).uuid()


def test_without_pytorch_the_extra_is_named():
    code = "import sys; sys.modules['torch'] = None; import graphsim.torch_compile"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "MissingExtraError" in run.stderr
    assert "graphsim-memory[torch]" in run.stderr
