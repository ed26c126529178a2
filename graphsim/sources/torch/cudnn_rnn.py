"""Recurrent layers in cuDNN: one op for all layers and steps, asked for in Python where a CPU build cannot ask.

Source: aten/src/ATen/native/RNN.cpp (``lstm``, ``gru``: which path) and cudnn/RNN.cpp. PyTorch takes cuDNN on CUDA
where ``cudnn_is_acceptable`` says so: cuDNN is on, and the input is fp32, fp64 or fp16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphsim.sources.torch.operands import copies, first_in_order, nbytes
from graphsim.sources.torch.packed import is_packed
from graphsim.step.ops.recurrent import cudnn_reserve

aten = torch.ops.aten

MODES: dict[Any, int] = {torch._VF.rnn_relu: 0, torch._VF.rnn_tanh: 1, torch._VF.lstm: 2, torch._VF.gru: 3}
"""cuDNN's numbers of what `torch.nn` calls (``cudnnRNNMode_t``)."""

_LSTM = 2
_GATES = {0: 1, 1: 1, _LSTM: 4, 3: 3}


def acceptable(func: Any, args: Any) -> bool:
    """Return whether *func*, called with *args*, is a recurrent layer that runs in cuDNN on a GPU."""
    if func not in MODES or not torch.backends.cudnn.enabled:
        return False
    x = args[0]
    return bool(x.is_cuda and x.dtype in (torch.float16, torch.float32, torch.float64))


def recur(func: Any, args: Any) -> Any:
    """Return what *func* returns, from the one op that it is in cuDNN. Parameters are taken as views of its buffer."""
    if is_packed(args):
        x, sizes, states, weights, bias, layers, p, train, both = args
        batch_first, sizes = False, sizes.tolist()
    else:
        x, states, weights, bias, layers, p, train, both, batch_first = args
        sizes = []
    mode = MODES[func]
    hidden, cell = states if mode == _LSTM else (states, None)
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        x, hidden, *weights = (t.to(dtype) for t in (x, hidden, *weights))
        cell = cell.to(dtype) if cell is not None else None
    width = weights[1].shape[1]
    own = weights[0].shape[0] // _GATES[mode]
    projected = width if width != own else 0
    stride = (4 if bias else 2) + bool(projected)
    x = x.transpose(0, 1) if batch_first else x  # copied in the kernel, forward and again in backward
    with torch.autocast("cuda", enabled=False):
        y, last, last_cell, *_ = aten._cudnn_rnn(
            x,
            weights,
            stride,
            None,
            hidden,
            cell,
            mode,
            own,
            projected,
            layers,
            batch_first,
            p,
            train,
            both,
            sizes,
            None,
        )
    y = y.transpose(0, 1) if batch_first else y
    return (y, last, last_cell) if mode == _LSTM else (y, last)


# -- shapes --------------------------------------------------------------------------------------------


def _forward(*args: Any) -> Any:
    """A reserve if gradients may follow, and no buffer: parameters are views of it."""
    x, hidden, cell, mode, width, layers, p, train = (args[number] for number in (0, 4, 5, 6, 7, 9, 11, 12))
    y, last, last_cell, *_ = aten._cudnn_rnn.default(*args)
    if cell is None:
        last_cell = x.new_empty(0)
    reserve = 0
    if train:
        per_layer = y.numel() // hidden.shape[2] * width
        reserve = cudnn_reserve(_GATES[mode], per_layer, layers, dropout=bool(p)) * x.itemsize
    return y, last, last_cell, x.new_empty(reserve, dtype=torch.uint8), x.new_empty(0)


def _backward(x: Any, weights: Any, *rest: Any) -> Any:
    """Gradients of input and states, and those of the weights as views of one buffer."""
    hidden, cell = rest[2:4]
    mask = rest[-1]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    parts = []
    if mask[3]:
        total = x.new_empty(sum(w.numel() for w in weights))
        pieces = total.split([w.numel() for w in weights])
        parts = [piece.view(weight.shape) for piece, weight in zip(pieces, weights, strict=True)]
    state = [torch.empty_like(t) if t is not None else None for t in (hidden, cell)]
    return dx, state[0], state[1], parts


def _gru_cell(gates: Any, _: Any, hidden: Any, *__: Any) -> Any:
    """The new state, and 5 values per unit for backward (cuda/RNN.cu, ``GRU_WORKSPACE_MULTIPLIER``)."""
    return torch.empty_like(hidden, memory_format=torch.contiguous_format), hidden.new_empty(
        hidden.shape[0], 5 * hidden.shape[1]
    )


def _gru_cell_backward(grad: Any, _: Any, has_bias: bool) -> Any:
    """Gradients of both kinds of gates, of the state, and of the biases (cuda/RNN.cu)."""
    rows, width = grad.shape
    gates = [grad.new_empty(rows, 3 * width) for _ in range(2)]
    biases = [grad.new_empty(3 * width) if has_bias else None for _ in range(2)]
    return (*gates, torch.empty_like(grad), *biases)


FAKES: dict[Any, Callable[..., Any]] = {
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
    aten._cudnn_rnn.default: _forward,
    aten._cudnn_rnn_backward.default: _backward,
}


# -- scratch -------------------------------------------------------------------------------------------


def _backward_scratch(args: Any, result: Any) -> int:
    """Copies of input and gradient, and zeros for gradients that nobody gave.

    Source: cudnn/RNN.cpp, ``_cudnn_rnn_backward``.
    """
    x, hidden, cell, y, *grads = (args[number] for number in (0, 4, 5, 6, 7, 8, 9))
    missing = (like for like, grad in zip((y, hidden, cell), grads, strict=True) if grad is None)
    return copies(x, grads[0]) + sum(nbytes(like) for like in missing if like is not None)


SCRATCH: dict[Any, Any] = {
    aten._cudnn_rnn.default: first_in_order,
    aten._cudnn_rnn_backward.default: _backward_scratch,
}
"""cuDNN's own workspace is not known."""
