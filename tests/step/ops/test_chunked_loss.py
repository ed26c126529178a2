"""Linear and cross-entropy over chunks, against the same algorithm in PyTorch."""

from __future__ import annotations

import pytest
from oracle import assert_close

import graphsim as gs
from graphsim.step.ops.chunked_loss import chunk_rows

torch = pytest.importorskip("torch")

ROWS, WIDTH, CLASSES = 256, 64, 1000


class Chunked(torch.autograd.Function):
    """Liger-Kernel's algorithm, its Triton kernel replaced by operations in place."""

    @staticmethod
    def forward(ctx, x, weight, labels):
        grad_x, grad_w = torch.zeros_like(x), torch.zeros_like(weight)
        losses = torch.zeros(len(x))
        chunk = chunk_rows(len(x), x.shape[1], weight.shape[0])
        for begin in range(0, len(x), chunk):
            part = slice(begin, begin + chunk)
            logits = x[part] @ weight.t()
            logits.sub_(logits.amax(1, keepdim=True)).exp_()
            logits.div_(logits.sum(1, keepdim=True))
            rows = torch.arange(len(logits))
            losses[part] = -logits[rows, labels[part]].log()
            logits[rows, labels[part]] -= 1
            logits.div_(len(x))
            grad_x[part] = logits @ weight
            torch.addmm(grad_w, logits.t(), x[part], out=grad_w)
        ctx.save_for_backward(grad_x, grad_w)
        return losses.mean()

    @staticmethod
    def backward(ctx, grad):
        return (*ctx.saved_tensors, None)


def test_it_allocates_what_the_algorithm_allocates():
    """Within 8 kB: sums and indices per row of a chunk, which Liger's kernel keeps in registers."""
    body, head = torch.nn.Linear(32, WIDTH), torch.nn.Linear(WIDTH, CLASSES, bias=False)
    x, labels = torch.randn(ROWS, 32), torch.randint(0, CLASSES, (ROWS,))
    text = f"""
    [inputs]
    x = {{ shape = [{ROWS}, 32] }}
    labels = {{ shape = [{ROWS}], dtype = "int64" }}
    [model]
    layers = [
      {{ op = "linear", out = {WIDTH} }},
      {{ op = "linear_cross_entropy", with = "labels", out = {CLASSES}, bias = false }},
    ]
    """

    def loss():
        return Chunked.apply(body(x), head.weight, labels)

    assert_close(loss, text, within=8192)
    whole = torch.nn.functional.cross_entropy(head(body(x)), labels)
    assert loss().item() == pytest.approx(whole.item(), rel=1e-5)


def test_a_chunk_takes_about_as_much_as_the_input():
    assert chunk_rows(8192, 4096, 128256) == 256  # 8192 / 32, as Liger's comments compute it
    assert chunk_rows(5, 8, 4) == 8


def test_the_logits_are_gone():
    layers = """
    [inputs]
    x = { shape = [4096, 64] }
    labels = { shape = [4096], dtype = "int64" }
    [model]
    layers = [{ op = "linear", out = 64 }, LOSS]
    """
    from graphsim.sources.spec import parse_spec

    plain = '{ op = "linear", out = 50000, bias = false }, { op = "cross_entropy", with = "labels" }'
    fused = '{ op = "linear_cross_entropy", with = "labels", out = 50000, bias = false }'
    peaks = [gs.peak(parse_spec(layers.replace("LOSS", loss))).steady.peak_bytes for loss in (plain, fused)]
    assert peaks[1] < peaks[0] / 10
