"""Sizes of what oneDNN's recurrent primitive allocates beside its operands, in bytes.

Source: oneDNN src/cpu/rnn/rnn_utils.hpp (init_conf, set_workspace_sizes), rnn_utils.cpp (set_offsets,
get_good_ld), ref_rnn.cpp (init_scratchpad), src/common/memory_tracking.hpp; version 3.12, as PyTorch
2.13 ships it, on x86-64 with AVX2 or AVX-512. One layer, one direction per primitive.
Letters: T steps, B batch, I input width, H hidden width.
"""

from __future__ import annotations

from graphsim.units import itemsize

_PAGE = 4096
_ACCUMULATOR = 4
"""Gradients and products are accumulated in fp32."""


def lstm_workspace(steps: int, batch: int, inner: int, hidden: int, dtype: str) -> int:
    """Return the bytes that the forward pass hands to the backward pass.

    Gates of each step, hidden states, and the states and their gradients over a grid of
    (layers + 1) x (steps + 1) cells; each part starts on a page.
    """
    size = itemsize(dtype)
    grid = 2 * (steps + 1) * batch
    widest = max(inner, hidden)
    gradients = grid * _leading(widest, _ACCUMULATOR) * _ACCUMULATOR
    return _pages(
        steps * batch * _leading(4 * hidden, size) * size,
        steps * batch * _leading(hidden, size) * size,
        grid * _leading(widest, size) * size,
        grid * hidden * size,
        gradients,
        gradients,
        grid * hidden * _ACCUMULATOR,
    )


def lstm_forward_scratch(steps: int, batch: int, inner: int, hidden: int, dtype: str, *, training: bool) -> int:
    """Return the scratch of a forward call: summed biases, reordered weights, the primitive's own.

    The product with the input is done for all steps at once if the batch is below 128.
    """
    size = itemsize(dtype)
    weights = (inner + hidden) * _leading(4 * hidden, size) * size
    merged = steps if batch < 128 else 1
    scratchpad = _scratchpad(merged, batch, hidden, dtype, _ACCUMULATOR, training=training)
    if not training:
        grid = 2 * (steps + 1) * batch
        scratchpad += _pages(grid * _leading(max(inner, hidden), size) * size, grid * hidden * size)
    return 4 * hidden * size + weights + scratchpad


def lstm_backward_scratch(steps: int, batch: int, inner: int, hidden: int, dtype: str) -> int:
    """Return the scratch of a backward call: summed biases, reordered weights and their gradients.

    Weights stay as they are if the primitive wants the leading dimension that they have.
    """
    size = itemsize(dtype)
    weights = sum(
        4 * hidden * _leading(width, size) * size for width in (inner, hidden) if _leading(width, size) != width
    )
    gradients = (inner + hidden) * _leading(4 * hidden, _ACCUMULATOR) * _ACCUMULATOR + 4 * hidden * _ACCUMULATOR
    return 4 * hidden * size + weights + gradients + _scratchpad(steps, batch, hidden, dtype, size, training=True)


def _scratchpad(merged: int, batch: int, hidden: int, dtype: str, gate_size: int, *, training: bool) -> int:
    """Gates and hidden states on pages, then three arrays of one pointer and one for the biases."""
    size = itemsize(dtype)
    space = _pages(
        merged * batch * _leading(4 * hidden, gate_size) * gate_size,
        batch * _leading(hidden, size) * size,
        batch * _leading(hidden, _ACCUMULATOR) * _ACCUMULATOR if training else 0,
    )
    pointer, alignment = 8, 128
    return space + _PAGE + 3 * (pointer + alignment) + pointer * size + alignment


def _leading(extent: int, size: int) -> int:
    """A leading dimension of whole cache lines that is no multiple of 256 elements."""
    line = 64 // size
    padded = -(-extent // line) * line
    return padded + line if padded % 256 == 0 else padded


def _pages(*parts: int) -> int:
    return sum(-(-part // _PAGE) * _PAGE for part in parts)
