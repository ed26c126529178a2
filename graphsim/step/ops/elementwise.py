"""Elementwise ops: activations, arithmetic, dropout.

What autograd saves is stated in tools/autograd/derivatives.yaml of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from graphsim.core.graph import Tensor
from graphsim.step.ops.kind import Attribute, Attributes, Kind, ShapeError, Signature, same
from graphsim.step.ops.reduction import emit_sum
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import FLOATING, itemsize


def like(tensor: Tensor) -> Type:
    """Return the type of *tensor*."""
    return Type(tensor.shape, tensor.dtype)


class Derivative(NamedTuple):
    """What autograd keeps of y = f(x), and the kernels of its backward: one named after f, if none are given.

    Of several, the last makes the gradient; each before it a factor, out of what is saved or of the factor before.
    """

    saves: Literal["input", "output", "nothing"]
    about: str
    kernels: tuple[str, ...] = ()


ACTIVATIONS = {
    "relu": Derivative("output", "max(x, 0)"),
    "relu6": Derivative("input", "min(max(x, 0), 6)"),
    "leaky_relu": Derivative("input", "x if x > 0, else a small slope"),
    "elu": Derivative("input", "x if x > 0, else exp(x) - 1"),
    "gelu": Derivative("input", "x * Phi(x), one fused kernel (exact or tanh)"),
    "silu": Derivative("input", "x * sigmoid(x), also called swish"),
    "mish": Derivative("input", "x * tanh(softplus(x))"),
    "hardswish": Derivative("input", "x * relu6(x + 3) / 6"),
    "sigmoid": Derivative("output", "1 / (1 + exp(-x))"),
    "tanh": Derivative("output", "hyperbolic tangent"),
}
"""Functions that PyTorch's modules also apply in place."""

FUNCTIONS = {
    "exp": Derivative("output", "exponential", ("mul",)),
    "log": Derivative("input", "natural logarithm", ("div",)),
    "sqrt": Derivative("output", "square root", ("mul_scalar", "div")),
    "rsqrt": Derivative("output", "1 / sqrt(x)", ("pow", "mul", "mul_scalar")),
    "reciprocal": Derivative("output", "1 / x", ("mul", "neg", "mul")),
    "neg": Derivative("nothing", "-x", ("neg",)),
    "rsub": Derivative("nothing", "a constant minus x", ("neg",)),
    "abs": Derivative("input", "absolute value", ("sgn", "mul")),
    "sin": Derivative("input", "sine", ("cos", "mul")),
    "cos": Derivative("input", "cosine", ("sin", "neg", "mul")),
    "erf": Derivative("input", "error function", ("pow", "neg", "exp", "mul_scalar", "mul")),
    "softplus": Derivative("input", "log(1 + exp(x))"),
    "hardsigmoid": Derivative("input", "min(max(x / 6 + 1/2, 0), 1)"),
    "selu": Derivative("input", "scaled ELU", ("elu_backward",)),
}
"""The others of one operand."""

_SELF_IS_RESULT = ("leaky_relu", "elu")
"""In place, their backward reads the result (derivatives.yaml, self_is_result)."""


def unary(tape: Tape, name: str, x: Tensor, *, inplace: bool = False) -> Tensor:
    """Apply a function of `ACTIVATIONS` or `FUNCTIONS`.

    In place, an input that backward reads is cloned before it is overwritten
    (tools/autograd/gen_variable_type.py, original_self).
    """
    derivative = ACTIVATIONS.get(name) or FUNCTIONS[name]
    saves = "output" if inplace and name in _SELF_IS_RESULT else derivative.saves
    original = tape.emit("clone", (x,), like(x)) if inplace and saves == "input" and tape.requires_gradient(x) else x
    y = tape.inplace(f"{name}_", x) if inplace else tape.emit(name, (x,), like(x))
    saved = {"input": (original,), "output": (y,), "nothing": ()}[saves]
    *steps, last = derivative.kernels or (f"{name}_backward",)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        factors: list[Tensor] = []
        for kernel in steps:
            factors.append(tape.emit(kernel, factors[-1:] or saved, like(x)))
        result = tape.emit(last, (grad, *(factors[-1:] or saved)), like(x))
        tape.hold(factors)
        return (result,)

    tape.differentiate((x,), y, saved, backward)
    return y


def reduce_to(tape: Tape, grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum a gradient over the dimensions that broadcasting had expanded."""
    if grad.shape == shape:
        return grad
    return emit_sum(tape, grad, Type(shape, grad.dtype))


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an elementwise result of shapes *a* and *b*.

    Raises:
        ShapeError: they do not broadcast.
    """
    rank = max(len(a), len(b))
    left, right = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    if any(x != y and 1 not in (x, y) for x, y in zip(left, right, strict=True)):
        raise ShapeError(f"shapes {list(a)} and {list(b)} do not broadcast")
    return tuple(max(x, y) if 0 not in (x, y) else 0 for x, y in zip(left, right, strict=True))


def binary(tape: Tape, kind: str, a: Tensor, b: Tensor, *, inplace: bool = False) -> Tensor:
    """Run a kernel of two operands, which broadcast and are promoted to the wider floating dtype.

    On the CPU a narrower operand is cast into a temporary (aten/src/ATen/TensorIterator.cpp,
    compute_types); CUDA kernels cast element by element.
    """
    wide = max((t.dtype for t in (a, b) if t.dtype in FLOATING), key=itemsize, default=a.dtype)
    narrow = [t for t in (a, b) if t.dtype in FLOATING and t.dtype != wide]
    scratch = sum(t.size * itemsize(wide) for t in narrow) if tape.target == "cpu" else 0
    if inplace:
        return tape.inplace(f"{kind}_", a, (b,), workspace=scratch)
    return tape.emit(kind, (a, b), Type(broadcast(a.shape, b.shape), wide), workspace=scratch)


def fit(tape: Tape, grad: Tensor | None, x: Tensor) -> Tensor | None:
    """Return *grad* as the gradient of *x*: summed over what was broadcast, cast to its dtype (engine.cpp)."""
    return None if grad is None else tape.to(reduce_to(tape, grad, x.shape), x.dtype)


def add(tape: Tape, a: Tensor, b: Tensor, *, inplace: bool = False) -> Tensor:
    """a + b. Autograd saves nothing; both gradients are the incoming one."""
    c = binary(tape, "add", a, b, inplace=inplace)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return [fit(tape, grad, x) if need else None for x, need in zip((a, b), needs, strict=True)]

    tape.differentiate((a, b), c, (), backward)
    return c


def mul(tape: Tape, a: Tensor, b: Tensor, *, inplace: bool = False) -> Tensor:
    """a * b. Saves each factor that the other's gradient needs; in place, a copy of the one overwritten."""
    original = tape.emit("clone", (a,), like(a)) if inplace and tape.requires_gradient(b) else a
    c = binary(tape, "mul", a, b, inplace=inplace)
    saved = [x for x, other in ((b, a), (original, b)) if tape.requires_gradient(other)]

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        products = [
            binary(tape, "mul", grad, other) if need else None for other, need in zip((b, original), needs, strict=True)
        ]
        return [fit(tape, product, x) for product, x in zip(products, (a, b), strict=True)]

    tape.differentiate((a, b), c, saved, backward)
    return c


def power(tape: Tape, x: Tensor) -> Tensor:
    """x to a constant power; saves x. Backward: grad * (n * x^(n - 1)) in three kernels (FunctionsManual.cpp).

    On autocast's fp32 list for CUDA.
    """
    (x,) = tape.full_precision(x)
    y = tape.emit("pow", (x,), like(x))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        lower = tape.emit("pow", (x,), like(x))
        slope = tape.emit("mul_scalar", (lower,), like(x))
        result = tape.emit("mul", (grad, slope), like(x))
        tape.hold([lower, slope])
        return (result,)

    tape.differentiate((x,), y, (x,), backward)
    return y


def scale(tape: Tape, x: Tensor, *, wrapped: bool = True) -> Tensor:
    """Multiply by a number; one *wrapped* from Python, the CPU saves as a tensor of 8 bytes (autograd, wrap_number)."""
    numbers = [Type((), "float64")] if wrapped and tape.target == "cpu" else []
    y, *saved = tape.emit_many("mul_scalar", (x,), (like(x), *numbers), flops=x.size)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("mul_scalar_backward", (grad, *saved), like(x)),)

    tape.differentiate((x,), y, saved, backward)
    return y


def shift(tape: Tape, x: Tensor) -> Tensor:
    """Add a number: the gradient passes through."""
    y = tape.emit("add_scalar", (x,), like(x))
    tape.differentiate((x,), y, (), lambda grad, needs: (grad,))
    return y


def hold(tape: Tape, inputs: Sequence[Tensor], *, shared: bool) -> Tensor:
    """Keep *inputs* alive until here, as local variables do; return the first.

    If *shared*, what layers share is kept until here too, and goes.
    """
    tape.hold([*inputs, *(tape.shared.values() if shared else ())])
    if shared:
        tape.shared.clear()
    return inputs[0]


def dropout(tape: Tape, x: Tensor, p: float) -> Tensor:
    """Zero elements with probability *p*. Nothing happens if p is 0 or outside of training.

    Source: aten/src/ATen/native/Dropout.cpp. CPU: the scaled mask in the input's dtype is saved by
    the multiplication; CUDA: native_dropout saves a bool mask.
    """
    if p == 0 or not tape.training:
        return x
    if tape.target == "cuda":
        y, mask = tape.emit_many("dropout", (x,), (like(x), Type(x.shape, "bool")))
    else:
        mask = tape.emit("bernoulli", (x,), like(x))
        y = tape.emit("mul", (x, mask), like(x))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("dropout_backward", (grad, mask), like(x)),)

    tape.differentiate((x,), y, (mask,), backward)
    return y


def gelu_new(tape: Tape, x: Tensor) -> Tensor:
    """GELU's tanh approximation written in Python, term by term, as transformers' NewGELUActivation."""
    half = scale(tape, x)
    cube = power(tape, x)
    inner = add(tape, x, scale(tape, cube))
    tanh = unary(tape, "tanh", scale(tape, inner))
    return mul(tape, half, shift(tape, tanh))


def _function(name: str, derivative: Derivative) -> Kind:
    attributes = (Attribute("inplace", "bool", False, "overwrite the input"),) if name in ACTIVATIONS else ()
    return Kind(
        name,
        same,
        lambda tape, inputs, owned, attributes: unary(tape, name, inputs[0], inplace=attributes.get("inplace", False)),
        attributes,
        about=derivative.about,
        source="derivatives.yaml",
        counted=False,
    )


def _infer_binary(types: Sequence[Type], attributes: Attributes) -> Signature:
    shape = types[0].shape
    for other in types[1:]:
        shape = broadcast(shape, other.shape)
    if attributes["inplace"] and shape != types[0].shape:
        raise ShapeError(f"an in-place result cannot have shape {list(shape)}, its first operand is {types[0].shape}")
    return Signature((Type(shape, types[0].dtype),))


def _binary(name: str, function: Callable[..., Tensor], about: str) -> Kind:
    def lower(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
        result = inputs[0]
        for other in inputs[1:]:
            result = function(tape, result, other, inplace=attributes["inplace"])
        return result

    attributes = (Attribute("inplace", "bool", False, "overwrite the first operand"),)
    return Kind(name, _infer_binary, lower, attributes, (2, 64), about, "derivatives.yaml", counted=False)


KINDS = (
    *(_function(name, derivative) for name, derivative in (ACTIVATIONS | FUNCTIONS).items()),
    Kind(
        "gelu_new",
        same,
        lambda tape, inputs, owned, attributes: gelu_new(tape, inputs[0]),
        about="GELU's tanh approximation in eight Python-level ops (GPT-2)",
        source="transformers/activations.py",
        counted=False,
    ),
    _binary("add", add, "sum of the operands, with broadcasting"),
    _binary("mul", mul, "product of the operands, with broadcasting"),
    Kind(
        "scale",
        same,
        lambda tape, inputs, owned, attributes: scale(tape, inputs[0]),
        about="product with a constant",
        source="derivatives.yaml",
        counted=False,
    ),
    Kind(
        "hold",
        same,
        lambda tape, inputs, owned, attributes: hold(tape, inputs, shared=attributes["shared"]),
        (Attribute("shared", "bool", False, "masks and tables that layers share live until here, and go"),),
        operands=(1, 64),
        about="the first operand; all of them live until here, as a caller's local variables do",
        counted=False,
    ),
    Kind(
        "dropout",
        same,
        lambda tape, inputs, owned, attributes: dropout(tape, inputs[0], attributes["p"]),
        (Attribute("p", "float", 0.5, "probability of zeroing", maximum=1),),
        about="zero random elements in training",
        source="aten/src/ATen/native/Dropout.cpp",
        counted=False,
    ),
)
