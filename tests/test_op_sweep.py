"""The sweep of ops: a sample of them, captured for CUDA forward and backward, and how two sweeps are compared."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from graphsim.core.devices import find_device  # noqa: E402

INDICES = torch.tensor([[0, 2], [1, 1]])


def selected(x, indices):
    return x[indices]


OPS = [  # of each class that failed once, or has a rule of its own
    (functional.multi_margin_loss, (4, 5), (torch.tensor([0, 1, 2, 3]),)),
    (functional.multilabel_margin_loss, (2, 2), (INDICES,)),
    (selected, (3, 4), (INDICES,)),
    (torch.masked_select, (2, 2), (INDICES > 0,)),
    (torch.sort, (3, 4), ()),
    (torch.topk, (3, 4), (2,)),
    (torch.logsumexp, (3, 4), (1,)),
    (torch.std, (3, 4), ()),
    (torch.roll, (3, 4), ((1, 1), (0, 1))),
    (torch.linalg.inv, (3, 3), ()),
    (torch.fft.rfft, (6,), ()),
    (torch.gather, (2, 2), (1, INDICES % 2)),
]


@pytest.fixture(scope="module")
def sweep():
    sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
    try:
        yield importlib.import_module("op_sweep")
    finally:
        sys.path.pop(0)


def test_ops_are_captured_forward_and_backward(sweep):
    """All as samples of one op, which calls them."""
    samples = [
        SimpleNamespace(input=torch.randn(shape).requires_grad_(), args=(op, *args), kwargs={})
        for op, shape, args in OPS
    ]
    found = sweep._captured(lambda x, op, *args: op(x, *args), samples, find_device("a100-80g"))
    assert found["failures"] == found["refusals"] == []
    kinds = {kind for kind, phase, *_ in found["ops"] if phase == "backward"}
    losses = {"multi_margin_loss_backward", "multilabel_margin_loss_backward"}
    assert kinds >= losses | {"index_put_", "scatter_add_", "_fft_c2c"}, sorted(kinds)
    assert any("linalg_inv_ex are not known" in note for note in found["notes"])


def test_what_is_refused_is_told_apart_from_what_fails(sweep):
    def broken(x):
        raise ZeroDivisionError("in the op")

    def decides(x):
        return x if x.sum() > 0 else -x

    sample = SimpleNamespace(input=torch.randn(3).requires_grad_(), args=(), kwargs={})
    device = find_device("a100-80g")
    assert "in the op" in sweep._captured(broken, [sample], device)["failures"][0][1]
    refused = sweep._captured(decides, [sample], device)
    assert refused["failures"] == []
    assert refused["refusals"]


def test_two_sweeps_differ_where_bytes_do(sweep):
    line = {"op": "exp", "dtype": "float32", "samples": 1, "failures": [], "refusals": [], "ops": [["exp", "", 0, [4]]]}
    assert list(sweep.compared([line], [line])) == []
    other = {**line, "ops": [["exp", "", 512, [4]]]}
    assert "512" in next(sweep.compared([line], [other]))
    assert "in one sweep only" in next(sweep.compared([line], []))
    assert "1 failed" in list(sweep.summary([{**line, "failures": [[0, "died"]]}]))[-1]
