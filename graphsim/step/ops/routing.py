"""Routed experts: a router sends each token to some of the experts of a layer.

As MixtralSparseMoeBlock of transformers 5 runs by default (integrations/moe.py, grouped_mm): token
and expert pairs are sorted by expert and all experts run in one grouped product per projection. So
every size follows from tokens * top_k, whatever the router decides: no balance has to be assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like, mul, unary
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.linear import linear
from graphsim.step.ops.matmul import softmax_backward
from graphsim.step.ops.shape import split
from graphsim.step.ops.tape import Gradients, Tape, Type

_INDEX = 8
"""Bytes of an int64 index."""


def routed_experts(tape: Tape, x: Tensor, gate: Tensor, gate_up: Tensor, down: Tensor, top_k: int) -> Tensor:
    """Route and run. x: (..., D); gate: (E, D); gate_up: (E, 2F, D); down: (E, D, F). Result: like x."""
    tokens = tape.view(x, (prod(x.shape[:-1]), x.shape[-1]))
    logits = linear(tape, tokens, gate)
    probabilities = _softmax(tape, tape.to(logits, "float32"))
    scores, experts = _top_k(tape, probabilities, top_k)
    scores = _normalize(tape, scores)
    y = _grouped_experts(tape, tokens, gate_up, down, scores, experts)
    tape.hold([x, logits, scores, experts])
    return tape.view(y, x.shape)


def _softmax(tape: Tape, x: Tensor) -> Tensor:
    y = tape.emit("softmax", (x,), like(x), flops=5 * x.size)
    tape.differentiate((x,), y, (y,), lambda grad, needs: (softmax_backward(tape, grad, y, like(x)),))
    return y


def _top_k(tape: Tape, x: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The greatest values of each row and where they are; the gradient is scattered into zeros."""
    shape = (x.shape[0], top_k)
    values, indices = tape.emit_many("topk", (x,), (Type(shape, x.dtype), Type(shape, "int64")))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("topk_backward", (grad, indices), like(x)),)

    tape.differentiate((x,), values, (indices,), backward)
    return values, indices


def _normalize(tape: Tape, scores: Tensor) -> Tensor:
    """``scores /= scores.sum(dim=-1, keepdim=True)``: autograd keeps a copy of what is overwritten."""
    total = tape.emit("sum", (scores,), Type((scores.shape[0], 1), scores.dtype), flops=scores.size)
    tape.differentiate((scores,), total, (), lambda grad, needs: (tape.alias(grad, scores.shape, kind="expand"),))
    original = tape.emit("clone", (scores,), like(scores))
    result = tape.inplace("div_", scores, (total,))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        once = tape.emit("div", (original, total), like(scores))
        twice = tape.emit("div", (once, total), like(scores))
        minus = tape.emit("neg", (grad,), like(scores))
        wide = tape.emit("mul", (minus, twice), like(scores))
        tape.hold([once, twice, minus])
        direct = tape.emit("div", (grad, total), like(scores))
        return (direct, tape.emit("sum", (wide,), like(total), flops=scores.size))

    tape.differentiate((scores, total), result, (original, total), backward)
    return result


def _grouped_experts(
    tape: Tape, tokens: Tensor, gate_up: Tensor, down: Tensor, scores: Tensor, experts: Tensor
) -> Tensor:
    """``grouped_mm_experts_forward``; its Python locals live to its end."""
    pairs, width, count = scores.size, tokens.shape[1], gate_up.shape[0]
    index = Type((pairs,), "int64")
    sorted_ids, order = tape.emit_many("sort", (experts,), (index, index), workspace=_INDEX * pairs)
    rows = tape.emit("floor_divide", (order,), index)
    chosen = _gather(tape, tokens, rows, (pairs, width))
    weights = _gather(tape, scores, order, (pairs,))
    ids = tape.emit("to", (sorted_ids,), Type((pairs,), "float32" if tape.target == "cpu" else "int32"))
    histogram = tape.emit("histc", (ids,), Type((count,), ids.dtype))
    offsets = tape.emit("cumsum", (histogram,), Type((count,), "int32"))
    both = _grouped_mm(tape, chosen, gate_up, offsets)
    gate, up = split(tape, both, [both.shape[1] // 2] * 2, 1)
    inner = mul(tape, unary(tape, "silu", gate), up)
    tape.hold([both])
    projected = _grouped_mm(tape, inner, down, offsets)
    weighted = mul(tape, projected, tape.view(weights, (pairs, 1)))
    inverse = tape.emit("inverse_permutation", (order,), index, workspace=_INDEX * pairs)
    restored = _gather(tape, weighted, inverse, (pairs, width))
    y = _sum_choices(tape, restored, tokens.shape)
    tape.hold([sorted_ids, order, chosen, weights, ids, histogram, offsets, projected, inverse, restored])
    return tape.to(y, tokens.dtype)


def _gather(tape: Tape, x: Tensor, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x[rows]``; the gradient is added into zeros. Saves the indices only."""
    y = tape.emit("index", (x, rows), Type(shape, x.dtype))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("index_put", (grad, rows), like(x), flops=grad.size),)

    tape.differentiate((x,), y, (rows,), backward)
    return y


def _grouped_mm(tape: Tape, x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Rows of *x*, sorted by expert, times the transpose of their expert's matrix. x: (S, in); weight: (E, out, in).

    Not on autocast's lists: the input follows the weight's dtype. The gradient of the weight comes
    first, as a transposed view.
    """
    x = tape.to(x, weight.dtype)
    rows, (count, outer, inner) = x.shape[0], weight.shape
    flops = 2 * rows * outer * inner
    y = tape.emit("grouped_mm", (x, weight, offsets), Type((rows, outer), x.dtype), flops=flops)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        grad_w = grad_x = None
        if needs[1]:
            product = tape.emit(
                "grouped_mm", (x, grad, offsets), Type((count, inner, outer), weight.dtype), flops=flops
            )
            grad_w = tape.alias(product, weight.shape, kind="t")
        if needs[0]:
            grad_x = tape.emit("grouped_mm", (grad, weight, offsets), like(x), flops=flops)
        return (grad_x, grad_w)

    tape.differentiate((x, weight), y, (x, weight, offsets), backward)
    return y


def _sum_choices(tape: Tape, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum over each token's experts. x: (tokens * top_k, D); the gradient is expanded, then copied by a reshape."""
    y = tape.emit("sum", (x,), Type(shape, x.dtype), flops=x.size)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("clone", (grad,), like(x)),)

    tape.differentiate((x,), y, (), backward)
    return y


def _infer(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    if len(x.shape) < 2:
        raise ShapeError(f"moe needs tokens (..., features), not {list(x.shape)}")
    experts, top_k, hidden = attributes["experts"], attributes["top_k"], attributes["hidden"]
    if top_k > experts:
        raise ShapeError(f"top_k = {top_k} is more than the {experts} experts")
    width = x.shape[-1]
    return Signature(
        (x,),
        (
            Parameter("gate", (experts, width)),
            Parameter("gate_up", (experts, 2 * hidden, width)),
            Parameter("down", (experts, width, hidden)),
        ),
    )


def _lower(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
    return routed_experts(tape, inputs[0], owned["gate"], owned["gate_up"], owned["down"], attributes["top_k"])


KINDS = (
    Kind(
        "moe",
        _infer,
        _lower,
        (
            Attribute("experts", "int", about="number of experts", minimum=1),
            Attribute("top_k", "int", 2, "experts that each token is sent to", minimum=1),
            Attribute("hidden", "int", about="inner width of an expert", minimum=1),
        ),
        about="router and gated (SwiGLU) experts, each token to its top_k; sizes do not depend on the routing",
        source="transformers/models/mixtral/modeling_mixtral.py, transformers/integrations/moe.py",
    ),
)
