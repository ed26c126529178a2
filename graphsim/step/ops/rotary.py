"""Rotary position embedding, as transformers' Llama composes it in Python.

Source: transformers/models/llama/modeling_llama.py: LlamaRotaryEmbedding makes cos and sin once per
forward pass; apply_rotary_pos_emb computes x * cos + rotate_half(x) * sin for queries and keys.
"""

from __future__ import annotations

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import add, like, mul
from graphsim.step.ops.tape import Gradients, Tape, Type


def rotate(tape: Tape, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys (B, H, S, D) by their positions."""
    cos, sin = _tables(tape, q)
    return _rotated(tape, q, cos, sin), _rotated(tape, k, cos, sin)


def _tables(tape: Tape, q: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (1, S, D), shared by all layers and held to the end of the forward pass.

    They have the dtype of the residual stream, which is fp32 under autocast.
    """
    dtype = "float32" if tape.autocast else q.dtype
    shape = (1, q.shape[2], q.shape[3])
    names = [f"rotary {part} {shape}" for part in ("cos", "sin")]
    for name in names:
        if name not in tape.shared:
            tape.shared[name] = tape.emit(name.split()[1], (), Type(shape, dtype), flops=shape[1] * shape[2])
    return tape.shared[names[0]], tape.shared[names[1]]


def _rotated(tape: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    shape = (1, 1, *cos.shape[1:])
    straight = mul(tape, x, tape.alias(cos, shape))
    crossed = mul(tape, _rotate_half(tape, x), tape.alias(sin, shape))
    return add(tape, straight, crossed)


def _rotate_half(tape: Tape, x: Tensor) -> Tensor:
    """cat(-x2, x1): the negated half is a temporary; backward writes each half into zeros and adds."""
    half = x.size // 2 * (x.nbytes // x.size)
    y = tape.emit("rotate_half", (x,), like(x), workspace=half)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("rotate_half_backward", (grad,), like(x), workspace=x.nbytes + half),)

    tape.differentiate((x,), y, (), backward)
    return y
