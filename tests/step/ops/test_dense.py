"""Layer norm, embeddings, linear layers, losses: what they save, against torch."""

from __future__ import annotations

import pytest
from oracle import assert_close

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.mark.parametrize("shape", [(32, 48), (4, 8, 48)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_saves_input_and_statistics(shape, affine):
    net = nn.Sequential(nn.Linear(48, 48), nn.LayerNorm(48, elementwise_affine=affine))
    x, y = torch.randn(shape), torch.randn(shape)
    text = f"""
    [inputs]
    x = {{ shape = {list(shape)} }}
    y = {{ shape = {list(shape)} }}
    [model]
    layers = [
      {{ op = "linear", out = 48 }},
      {{ op = "layer_norm", affine = {str(affine).lower()} }},
      {{ op = "mse", with = "y" }},
    ]
    """
    assert_close(lambda: nn.functional.mse_loss(net(x), y), text)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(32, 48), (4, 8, 48), (2, 3, 4, 48)])
def test_a_linear_layer_folds_leading_dimensions(shape, bias):
    net = nn.Sequential(nn.Linear(48, 64, bias=bias), nn.Tanh(), nn.Linear(64, 16, bias=bias))
    x, y = torch.randn(shape), torch.randn(*shape[:-1], 16)
    text = f"""
    [inputs]
    x = {{ shape = {list(shape)} }}
    y = {{ shape = {list(y.shape)} }}
    [model]
    layers = [
      {{ op = "linear", out = 64, bias = {str(bias).lower()} }},
      "tanh",
      {{ op = "linear", out = 16, bias = {str(bias).lower()} }},
      {{ op = "mse", with = "y" }},
    ]
    """
    assert_close(lambda: nn.functional.mse_loss(net(x), y), text)


def test_tied_embeddings_sum_their_gradients_out_of_place():
    table, ids, labels = nn.Embedding(300, 32), torch.randint(0, 300, (4, 8)), torch.randint(0, 300, (4, 8))
    text = """
    [inputs]
    ids = { shape = [4, 8], dtype = "int64" }
    labels = { shape = [4, 8], dtype = "int64" }
    [model]
    layers = [
      { op = "embedding", rows = 300, width = 32, name = "wte" },
      "tanh",
      { op = "linear", out = 300, bias = false, weight = "wte.weight" },
      { op = "cross_entropy", with = "labels" },
    ]
    """

    def loss():
        logits = nn.functional.linear(torch.tanh(table(ids)), table.weight)
        return nn.functional.cross_entropy(logits.view(-1, 300), labels.view(-1))

    assert_close(loss, text)


@pytest.mark.parametrize("shape", [(16, 10), (4, 6, 10)])
def test_cross_entropy_saves_log_probabilities(shape):
    net, x, labels = nn.Linear(8, 10), torch.randn(*shape[:-1], 8), torch.randint(0, 10, shape[:-1])
    text = f"""
    [inputs]
    x = {{ shape = {list(x.shape)} }}
    labels = {{ shape = {list(labels.shape)}, dtype = "int64" }}
    [model]
    layers = [{{ op = "linear", out = 10 }}, {{ op = "cross_entropy", with = "labels" }}]
    """
    assert_close(lambda: nn.functional.cross_entropy(net(x).view(-1, 10), labels.view(-1)), text)


def test_matmul_and_softmax_save_what_their_gradients_read():
    net, x, y = nn.Linear(16, 16), torch.randn(4, 8, 16), torch.randn(4, 8, 8)

    def loss():
        return nn.functional.mse_loss(torch.softmax(net(x) @ x.transpose(1, 2), -1), y)

    text = """
    [inputs]
    x = { shape = [4, 8, 16] }
    y = { shape = [4, 8, 8] }
    [model]
    layers = [
      { op = "linear", out = 16 },
      { op = "matmul", with = "x", transpose = true },
      "softmax",
      { op = "mse", with = "y" },
    ]
    """
    assert_close(loss, text)
