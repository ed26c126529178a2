"""Numeric formats against torch: autocast and its cache of weights, pure low precision, loss scaling, masters."""

from __future__ import annotations

import mlp
import pytest

import graphsim as gs
from graphsim.core.graph import Phase
from graphsim.errors import UnknownNameError
from graphsim.step.precision import PRECISIONS, precision_of

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def _native_kernels():
    """oneDNN's scratch memory for 16-bit matrices depends on the processor; the native kernels have none."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def sgd(params):
    return torch.optim.SGD(params, 0.1, foreach=False)


def autocast(dtype):
    def loss_of(net, x, label):
        with torch.autocast("cpu", dtype=dtype):
            return torch.nn.functional.cross_entropy(net(x), label)

    return loss_of


def assert_equal(ours, theirs):
    for step in (0, 1):
        assert mlp.difference(ours[step], theirs[step]) <= mlp.SCALARS


@pytest.mark.parametrize("accumulation", [1, 2])
def test_autocast_casts_each_weight_once_per_forward_and_lets_go_on_exit(accumulation):
    ours = mlp.simulated(optimizer="sgd", precision="amp-bf16", accumulation=accumulation)
    assert_equal(ours, mlp.trained(sgd, forward=autocast(torch.bfloat16), accumulation=accumulation))


CONVOLUTIONS = """
[inputs]
x = { shape = [8, 3, 32, 32] }
label = { shape = [8], dtype = "int64" }
[model]
layers = [
  { op = "conv2d", out = 16, kernel = 3, padding = 1 },
  "batch_norm",
  "relu",
  { op = "conv2d", out = 32, kernel = 3, padding = 1, bias = false },
  "batch_norm",
  "relu",
  { op = "adaptive_avg_pool", size = 1 },
  "flatten",
  { op = "linear", out = 10 },
  { op = "cross_entropy", with = "label" },
]
"""


def convolutions(dtype=None):
    from torch import nn

    first = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
    second = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
    net = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return net.to(dtype), torch.randn(8, 3, 32, 32, dtype=dtype), torch.randint(0, 10, (8,))


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN leaves bf16 to native kernels")
@pytest.mark.parametrize("precision", ["amp-bf16", "bf16"])
def test_batch_norm_keeps_fp32_statistics_only_if_its_parameters_are_fp32(precision):
    pure = precision == "bf16"
    options = {"dtype": torch.bfloat16} if pure else {"forward": autocast(torch.bfloat16)}
    ours = mlp.simulated(spec=CONVOLUTIONS, optimizer="sgd", precision=precision)
    with torch.backends.mkldnn.flags(enabled=True):
        assert_equal(ours, mlp.trained(sgd, example=convolutions, **options))


@pytest.mark.parametrize("form", ["forloop", "fused"])
def test_loss_scaling_holds_scalars_only(form):
    def optimizer(params):
        return torch.optim.SGD(params, 0.1, foreach=False, fused=form == "fused")

    ours = mlp.simulated(optimizer="sgd", optimizer_impl=form, precision="amp-fp16")
    scaler = lambda: torch.amp.GradScaler("cpu")  # noqa: E731
    assert_equal(ours, mlp.trained(optimizer, forward=autocast(torch.float16), scaler=scaler))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_pure_low_precision_halves_states_and_gradients_too(precision):
    def adam(params):
        return torch.optim.Adam(params, foreach=False)

    ours = mlp.simulated(optimizer="adam", precision=precision)
    assert_equal(ours, mlp.trained(adam, dtype=DTYPES[precision]))


class Masters(torch.optim.Optimizer):
    """SGD with momentum on fp32 masters, in the order of Apex's FP16_Optimizer and Megatron-LM."""

    def __init__(self, params):
        super().__init__(params, {})
        self.low = self.param_groups[0]["params"]
        self.masters = [torch.nn.Parameter(p.detach().float()) for p in self.low]
        self.inner = torch.optim.SGD(self.masters, 0.1, momentum=0.9, foreach=False)

    @torch.no_grad()
    def step(self):
        for low, master in zip(self.low, self.masters, strict=True):
            master.grad = low.grad.float()
        self.inner.step()
        for master in self.masters:
            master.grad = None
        for low, master in zip(self.low, self.masters, strict=True):
            low.copy_(master)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_master_weights_stay_and_their_gradients_go_with_the_update(precision):
    ours = mlp.simulated(optimizer="momentum", precision=precision, master_weights=True)
    assert_equal(ours, mlp.trained(Masters, dtype=DTYPES[precision]))


def test_every_precision_has_a_smaller_or_equal_forward_graph_than_fp32():
    ends = {name: mlp.phases(first=True, precision=name)["forward"].end for name in PRECISIONS}
    assert ends["bf16"] == ends["fp16"] < ends["amp-bf16"]
    assert ends["bf16"] * 2 - ends["fp32"] == 96 * 8  # all but the labels is half as large


def test_only_loss_scaling_makes_scaler_states():
    for name, precision in PRECISIONS.items():
        step = gs.training_step(mlp.graph_of(), precision=name)
        scaler = [t for t in step.tensors if t.startswith("grad_scaler.")]
        assert len(scaler) == (2 if precision.loss_scaling else 0)
        assert any(op.phase is Phase.OPTIMIZER for op in step.ops)


def test_an_unknown_precision_is_an_error_that_names_the_nearest():
    with pytest.raises(UnknownNameError, match="amp-bf16"):
        precision_of("amp-bf6")
