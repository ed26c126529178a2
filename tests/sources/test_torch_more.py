"""Lazy modules, FlexAttention, and errors in the user's code: captured as they run, or located."""

from __future__ import annotations

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")

from test_torch import adam, boundaries, compare, count, plain_step  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parameter import is_lazy  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError  # noqa: E402
from graphsim.sources.torch.capture import capture  # noqa: E402


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LazyConv2d(8, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten())
        self.head = nn.LazyLinear(10)
        self.known = nn.Linear(10, 3)

    def forward(self, x):
        return self.known(self.head(self.body(x))).mean()


BATCH = (torch.randn(2, 3, 8, 8),)


@pytest.mark.parametrize("how", ["module", "factory"])
def test_lazy_modules_are_exact(how):
    model = Lazy()
    twin = copy.deepcopy(model.known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that lazy modules may change
        captured = capture(model if how == "module" else Lazy, list(BATCH), optimizer=adam, loss=None, step=None)
        assert all(is_lazy(p) for p in model.head.parameters())
        assert torch.equal(model.known.weight, twin.weight)
        model(*BATCH)
    optimizer = adam(model.parameters())
    real = count(lambda: plain_step(model, BATCH, optimizer), [*model.parameters(), *model.buffers(), *BATCH])
    for first, expected in zip((True, False), real, strict=True):
        compare(boundaries(captured.graph(first=first)), expected)


def test_lazy_parameters_have_roles_and_names():
    graph = gs.from_torch(Lazy, list(BATCH), optimizer="sgd")
    assert graph.tensors["body.0.weight"].shape == (8, 3, 3, 3)
    assert graph.tensors["head.weight"].role is gs.Role.PARAMETER
    assert graph.tensors["body.1.running_mean"].role is gs.Role.BUFFER


def test_tied_parameters_beside_lazy_ones_stay_tied():
    def make():
        model = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8), nn.Linear(8, 8))
        model[2].weight = model[0].weight
        return model

    for module in (make, make()):
        graph = gs.from_torch(module, torch.randn(2, 8), optimizer="sgd")
        parameters = [t for t in graph.tensors.values() if t.role is gs.Role.PARAMETER and not t.storage]
        assert len(parameters) == 5


def test_a_lazy_module_that_is_not_reached_is_named():
    class Unreached(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.LazyLinear(4), nn.LazyLinear(4)

        def forward(self, x):
            return self.used(x).sum()

    with pytest.raises(CaptureError, match="module 'spare': a lazy module that a call of the model"):
        gs.from_torch(Unreached, torch.randn(2, 4))


def test_a_wrong_batch_of_a_lazy_model_names_module_and_line():
    with pytest.raises(CaptureError, match=r"module 'known', .*test_torch_more\.py:\d+: RuntimeError: ") as caught:
        gs.from_torch(Mismatch, torch.randn(2, 4))
    assert caught.value.layer == "known"


class Mismatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.lazy, self.known = nn.LazyLinear(5), nn.Linear(6, 3)

    def forward(self, x):
        return self.known(self.lazy(x))


# -- FlexAttention -------------------------------------------------------------------------------------


class Flex(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(32, 96)

    def forward(self, x):
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = self.projection(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + (i - j)).sum()


def test_flex_attention_has_no_backward_on_the_cpu_and_the_error_says_where():
    """PyTorch itself refuses: its kernels for training are for GPUs."""
    model, x = nn.Sequential(Flex()), torch.randn(2, 128, 32)
    with pytest.raises(NotImplementedError, match="FlexAttention does not support backward on CPU"):
        model(x).backward()
    with pytest.raises(CaptureError, match="FlexAttention does not support backward on CPU") as caught:
        gs.from_torch(model, x)
    assert caught.value.layer == "0"
    assert "test_torch_more.py:" in caught.value.line
    assert isinstance(caught.value.__cause__, NotImplementedError)


# -- what the user's own code raises -----------------------------------------------------------------


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        raise KeyError("no such thing")


def test_an_exception_of_the_model_names_module_and_line_and_keeps_its_cause():
    with pytest.raises(
        CaptureError, match=r"module '1', .*test_torch_more\.py:\d+: KeyError: 'no such thing'"
    ) as caught:
        gs.from_torch(nn.Sequential(nn.Linear(4, 4), Broken()), torch.randn(2, 4))
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_exception_of_the_step_names_the_line():
    def step(model, batch, optimizer):
        raise ZeroDivisionError

    with pytest.raises(CaptureError, match=r"test_torch_more\.py:\d+: ZeroDivisionError$"):
        gs.from_torch(nn.Linear(4, 4), torch.randn(2, 4), step=step)
