"""Elementwise arithmetic beyond activations, as exported graphs spell models out: functions, differences, quotients.

Gradients: tools/autograd/derivatives.yaml and torch/csrc/autograd/FunctionsManual.cpp of PyTorch, kernel by
kernel; the intermediate results of a formula live until its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import binary, broadcast, fit, like, power, shift
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Signature, same
from graphsim.step.ops.loss import log_softmax
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import FLOATING, ITEMSIZE

Owned = Mapping[str, Tensor]


def clamp(tape: Tape, x: Tensor) -> Tensor:
    """Limit to an interval; saves x. Backward selects by a mask of two comparisons (clamp_backward)."""
    y = tape.emit("clamp", (x,), like(x))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        lower, upper = (tape.emit(name, (x,), Type(x.shape, "bool")) for name in ("ge", "le"))
        inside = tape.inplace("logical_and_", lower, (upper,))
        result = tape.emit("where", (inside, grad), like(x))
        tape.hold([lower, upper])
        return (result,)

    tape.differentiate((x,), y, (x,), backward)
    return y


def sub(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """a - b. Saves nothing; the gradient of b is negated."""
    c = binary(tape, "sub", a, b)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        first = fit(tape, grad, a) if needs[0] else None
        return (first, fit(tape, tape.emit("neg", (grad,), like(grad)), b) if needs[1] else None)

    tape.differentiate((a, b), c, (), backward)
    return c


def div(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """a / b. Saves b, and a if b needs a gradient, which is computed first: -grad * ((a / b) / b)."""
    c = binary(tape, "div", a, b)
    saved = [a, b] if tape.requires_gradient(b) else [b]

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        second = None
        if needs[1]:
            quotient = binary(tape, "div", a, b)
            slope = binary(tape, "div", quotient, b)
            negative = tape.emit("neg", (grad,), like(grad))
            second = tape.emit("mul", (negative, slope), like(grad))
            tape.hold([negative, quotient, slope])
        first = binary(tape, "div", grad, b) if needs[0] else None
        return (fit(tape, first, a), fit(tape, second, b))

    tape.differentiate((a, b), c, saved, backward)
    return c


def where(tape: Tape, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where *condition*, else b. Saves the condition; each gradient has zeros where the other was taken."""
    shape = broadcast(condition.shape, broadcast(a.shape, b.shape))
    c = tape.emit("where", (condition, a, b), Type(shape, a.dtype))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        chosen = [
            fit(tape, tape.emit("where", (condition, grad), like(grad)), x) if need else None
            for x, need in zip((a, b), needs[1:], strict=True)
        ]
        return (None, *chosen)

    tape.differentiate((condition, a, b), c, (condition,), backward)
    return c


def cast(tape: Tape, x: Tensor, dtype: str) -> Tensor:
    """Return x in *dtype*; differentiable between floating dtypes."""
    if x.dtype == dtype:
        return x
    if x.dtype in FLOATING and dtype in FLOATING:
        return tape.to(x, dtype)
    return tape.emit("to", (x,), Type(x.shape, dtype))


def compute(tape: Tape, inputs: Sequence[Tensor], shape: tuple[int, ...], dtype: str) -> Tensor:
    """Run any kernel that has no gradient: comparisons, masks, positions."""
    return tape.emit("compute", inputs, Type(shape, dtype))


# -- the table -------------------------------------------------------------------------------------


def _infer_pair(types: Sequence[Type], attributes: Attributes) -> Signature:
    return Signature((Type(broadcast(types[0].shape, types[1].shape), types[0].dtype),))


def _infer_where(types: Sequence[Type], attributes: Attributes) -> Signature:
    shape = broadcast(types[0].shape, broadcast(types[1].shape, types[2].shape))
    return Signature((Type(shape, types[1].dtype),))


def _infer_cast(types: Sequence[Type], attributes: Attributes) -> Signature:
    return Signature((Type(types[0].shape, attributes["dtype"]),))


def _infer_compute(types: Sequence[Type], attributes: Attributes) -> Signature:
    return Signature((Type(tuple(attributes["shape"]), attributes["dtype"]),))


def _unary(name: str, lower: Callable[[Tape, Tensor], Tensor], about: str, source: str = "derivatives.yaml") -> Kind:
    return Kind(
        name,
        same,
        lambda tape, inputs, owned, attributes: lower(tape, inputs[0]),
        about=about,
        source=source,
        counted=False,
    )


def _pair(name: str, lower: Callable[[Tape, Tensor, Tensor], Tensor], about: str) -> Kind:
    return Kind(
        name,
        _infer_pair,
        lambda tape, inputs, owned, attributes: lower(tape, inputs[0], inputs[1]),
        operands=(2, 2),
        about=about,
        source="derivatives.yaml",
        counted=False,
    )


_DTYPE = Attribute("dtype", "name", about="of the result", choices=tuple(sorted(ITEMSIZE)))

KINDS = (
    _unary("clamp", clamp, "min(max(x, a), b) with constants"),
    _unary("power", power, "x to a constant power", "FunctionsManual.cpp, pow_backward"),
    _unary("shift", shift, "sum with a constant"),
    _unary("log_softmax", log_softmax, "logarithm of the softmax", "aten/src/ATen/native/SoftMax.cpp"),
    _pair("sub", sub, "difference, with broadcasting"),
    _pair("div", div, "quotient, with broadcasting"),
    Kind(
        "where",
        _infer_where,
        lambda tape, inputs, owned, attributes: where(tape, *inputs),
        operands=(3, 3),
        about="elements of the second operand where the first, a mask, is true, else of the third",
        source="derivatives.yaml",
        counted=False,
    ),
    Kind(
        "cast",
        _infer_cast,
        lambda tape, inputs, owned, attributes: cast(tape, inputs[0], attributes["dtype"]),
        (_DTYPE,),
        about="the same elements in another dtype",
        counted=False,
    ),
    Kind(
        "compute",
        _infer_compute,
        lambda tape, inputs, owned, attributes: compute(tape, inputs, tuple(attributes["shape"]), attributes["dtype"]),
        (Attribute("shape", "ints", about="of the result", maximum=2**44), _DTYPE),
        operands=(0, 64),
        about="any kernel without a gradient: comparisons, masks, positions",
        counted=False,
    ),
)
