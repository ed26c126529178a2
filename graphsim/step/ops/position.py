"""T5's positions: a learned bias per bucket of distance and head, and labels shifted into decoder inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import FLOATING


def relative_bias(tape: Tape, weight: Tensor, queries: int, keys: int, *, causal: bool) -> Tensor:
    """Bias (1, heads, queries, keys), a permuted view, looked up in *weight* (buckets, heads).

    Source: ``T5Attention.compute_bias`` and ``_relative_position_bucket`` of transformers. Distances
    live until the lookup; the buckets' temporaries are int64 and bool matrices.
    """
    grid = Type((queries, keys), "int64")
    line = 8 * (queries + keys)
    distance = tape.emit("relative_position", (), grid, workspace=line)
    temporaries = (3 if causal else 4) * grid.nbytes + grid.size
    bucket = tape.emit("relative_bucket", (distance,), grid, workspace=temporaries + line)
    values = tape.emit("embedding", (weight, bucket), Type((*grid.shape, weight.shape[1]), weight.dtype))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        grad = tape.contiguous(grad)
        return (tape.emit("embedding_backward", (grad, bucket), like(weight), flops=grad.size),)

    tape.differentiate((weight,), values, (bucket,), backward)
    tape.hold([distance])
    return tape.view(values, (1, weight.shape[1], *grid.shape), kind="transpose", contiguous=False)


def bias_mask(tape: Tape, bias: Tensor, *, causal: bool) -> Tensor:
    """The additive mask of one attention layer: *bias*, minus infinity ahead if *causal*, in order.

    Source: ``create_position_bias_mask`` of transformers/integrations/sdpa_attention.py.
    """
    if not causal:
        return tape.contiguous(bias)
    *_, queries, keys = bias.shape
    allowed = tape.emit("causal_mask", (), Type((1, 1, queries, keys), "bool"), workspace=8 * (queries + keys))
    masked = tape.emit("where", (allowed, bias), like(bias))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("where_backward", (allowed, grad), like(bias)),)

    tape.differentiate((bias,), masked, (allowed,), backward)
    ordered = tape.emit("clone", (masked,), like(masked))
    tape.differentiate((masked,), ordered, (), lambda grad, needs: (grad,))
    tape.hold([allowed])
    return ordered


def shift_right(tape: Tape, labels: Tensor) -> Tensor:
    """Decoder inputs: the labels, one position later (``T5PreTrainedModel._shift_right``)."""
    padding = labels.size  # a bool where labels are ignored
    return tape.emit("shift_right", (labels,), like(labels), workspace=max(labels.nbytes, padding))


def _infer_relative_bias(types: Sequence[Type], attributes: Attributes) -> Signature:
    queries, keys = types[0], types[-1]
    if len(queries.shape) != 3 or len(keys.shape) != 3:
        raise ShapeError(f"relative_bias needs (batch, steps, width), not {list(queries.shape)} and {list(keys.shape)}")
    heads = attributes["heads"]
    shape = (1, heads, queries.shape[1], keys.shape[1])
    return Signature((Type(shape, queries.dtype),), (Parameter("weight", (attributes["buckets"], heads)),))


def _lower_relative_bias(
    tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes
) -> Tensor:
    queries, keys = inputs[0].shape[1], inputs[-1].shape[1]
    return relative_bias(tape, owned["weight"], queries, keys, causal=attributes["causal"])


def _infer_bias_mask(types: Sequence[Type], attributes: Attributes) -> Signature:
    (bias,) = types
    if len(bias.shape) != 4:
        raise ShapeError(f"bias_mask needs a bias (1, heads, queries, keys), not {list(bias.shape)}")
    return Signature((bias,))


def _infer_zero_bias(types: Sequence[Type], attributes: Attributes) -> Signature:
    return Signature(_infer_relative_bias(types, {**attributes, "buckets": 1}).outputs)


def _lower_zero_bias(
    tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes
) -> Tensor:
    q, k = inputs[0], inputs[-1]
    return tape.emit("zeros", (), Type((1, attributes["heads"], q.shape[1], k.shape[1]), q.dtype))


def _infer_shift_right(types: Sequence[Type], attributes: Attributes) -> Signature:
    if types[0].dtype in FLOATING:
        raise ShapeError(f"shift_right needs integer labels, not {types[0].dtype}")
    return Signature((types[0],))


_HEADS = Attribute("heads", "int", about="attention heads", minimum=1)

KINDS = (
    Kind(
        "relative_bias",
        _infer_relative_bias,
        _lower_relative_bias,
        (
            _HEADS,
            Attribute("buckets", "int", 32, "buckets of distance", minimum=1),
            Attribute("causal", "bool", False, "only backwards distances are told apart"),
        ),
        operands=(1, 2),
        about="learned attention bias by relative position (T5): (1, heads, queries, keys)",
        source="transformers/models/t5/modeling_t5.py",
        counted=False,
    ),
    Kind(
        "zero_bias",
        _infer_zero_bias,
        _lower_zero_bias,
        (_HEADS,),
        operands=(1, 2),
        about="zeros in place of a bias (T5's cross attention): (1, heads, queries, keys)",
        source="transformers/models/t5/modeling_t5.py",
        counted=False,
    ),
    Kind(
        "bias_mask",
        _infer_bias_mask,
        lambda tape, inputs, owned, attributes: bias_mask(tape, inputs[0], causal=attributes["causal"]),
        (Attribute("causal", "bool", False, "minus infinity for keys ahead of the query"),),
        about="the additive mask that one attention layer makes of a bias",
        source="transformers/integrations/sdpa_attention.py",
        counted=False,
    ),
    Kind(
        "shift_right",
        _infer_shift_right,
        lambda tape, inputs, owned, attributes: shift_right(tape, inputs[0]),
        about="decoder inputs: the labels, one position later",
        source="transformers/models/t5/modeling_t5.py",
        counted=False,
    ),
)
