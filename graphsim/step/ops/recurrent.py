"""Recurrent layers: LSTM and GRU, several layers deep, in one or both directions.

CPU (aten/src/ATen/native/RNN.cpp): an LSTM in fp32 or bf16 runs one oneDNN primitive per layer and
direction (mkldnn/RNN.cpp); a GRU runs the native cell, kernel by kernel and step by step.
CUDA: one cuDNN call for all layers (cudnn/RNN.cpp), with a reserve space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import add, dropout, like, mul, unary
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.linear import linear
from graphsim.step.ops.onednn import lstm_backward_scratch, lstm_forward_scratch, lstm_workspace
from graphsim.step.ops.shape import concat, split
from graphsim.step.ops.tape import Gradients, Tape, Type


class Weights(NamedTuple):
    """Parameters of one layer in one direction; biases are None without bias."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None
    hidden_bias: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that exist, in the order in which modules declare them."""
        return tuple(t for t in self if t is not None)


# -- LSTM on oneDNN --------------------------------------------------------------------------------


def onednn_lstm(
    tape: Tape, x: Tensor, states: Sequence[Tensor], weights: Sequence[Sequence[Weights]], p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers of an LSTM. x: (T, B, in); states: h and c of (layers * directions, B, H).

    Source: aten/src/ATen/native/mkldnn/RNN.cpp, ``mkldnn_rnn``. The states of all layers stay
    alive until they are stacked.
    """
    x = tape.contiguous(x)
    hidden, cell = (_unbind(tape, state) for state in states)
    finals: list[tuple[Tensor, Tensor]] = []
    for depth, directions in enumerate(weights):
        outputs = []
        for direction in directions:
            y, h, c = _onednn_layer(tape, x, hidden[len(finals)], cell[len(finals)], direction)
            outputs.append(y)
            finals.append((h, c))
        x = outputs[0] if len(outputs) == 1 else concat(tape, outputs, 2)
        if depth < len(weights) - 1:
            x = dropout(tape, x, p)
    last_hidden = _stack(tape, [h for h, _ in finals])
    last_cell = _stack(tape, [c for _, c in finals])
    tape.hold([t for pair in finals for t in pair])
    return x, last_hidden, last_cell


def _onednn_layer(tape: Tape, x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """One primitive. Its workspace is an output that autograd keeps; weights are reordered in each call."""
    w_ih, w_hh, *biases = weights.tensors
    if not biases:  # stand-ins of the weights' shapes, kept as if they were biases
        biases = [tape.emit("zeros", (), like(w)) for w in (w_ih, w_hh)]
    operands = x, w_ih, w_hh, *_, h, c = tape.low_precision(x, w_ih, w_hh, *biases, h, c)
    steps, batch, inner = x.shape
    width = w_hh.shape[1]
    flops = 2 * steps * batch * 4 * width * (inner + width)
    results = [Type((steps, batch, width), x.dtype), like(h), like(c)]
    sizes = steps, batch, inner, width
    if tape.gradients:
        results.append(Type((lstm_workspace(*sizes, x.dtype),), "uint8"))
    scratch = lstm_forward_scratch(*sizes, x.dtype, training=tape.gradients)
    outputs = y, h1, c1, *_ = tape.emit_many("lstm_layer", operands, results, workspace=scratch, flops=flops)

    def backward(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
        incoming = [
            tape.emit("zeros_like", (), like(t)) if g is None else tape.contiguous(g)
            for g, t in zip(grads[:3], (y, h, c), strict=True)
        ]
        wanted = [like(t) for t in (x, h, c, w_ih, w_hh)] + [Type((4 * width,), w_ih.dtype)]
        dx, dh, dc, dw_ih, dw_hh, db = tape.emit_many(
            "lstm_layer_backward",
            (*incoming, *operands, *outputs),
            wanted,
            workspace=lstm_backward_scratch(*sizes, x.dtype),
            flops=2 * flops,
        )
        db2 = tape.emit("clone", (db,), like(db))
        tape.hold([*incoming, dh, dc])
        results = (dx, dw_ih, dw_hh, db, db2, dh, dc)
        return [result if need else None for result, need in zip(results, needs, strict=True)]

    tape.differentiate_many(operands, outputs, (*operands, *outputs), backward)
    return y, h1, c1


# -- GRU, kernel by kernel -------------------------------------------------------------------------


def native_gru(
    tape: Tape, x: Tensor, states: Sequence[Tensor], weights: Sequence[Sequence[Weights]], p: float
) -> tuple[Tensor, Tensor]:
    """All layers of a GRU. x: (T, B, in); states: h of (layers * directions, B, H).

    Source: aten/src/ATen/native/RNN.cpp, ``FullLayer``, ``FullBidirectionalLayer``, ``GRUCell``. The
    input's projection is one product for all steps, and lives until the next one or the layer's end.
    """
    hidden = _unbind(tape, states[0])
    finals: list[Tensor] = []
    for depth, directions in enumerate(weights):
        held: list[Tensor] = []
        outputs: list[Tensor] = []
        for number, direction in enumerate(directions):
            projected = linear(tape, x, direction.input, direction.input_bias)
            tape.hold(held[-1:])
            steps = _unbind(tape, projected)
            states_over_time = _gru_steps(tape, steps, hidden[len(finals)], direction, backwards=number == 1)
            finals.append(states_over_time[0 if number else -1])
            outputs.append(_stack(tape, states_over_time))
            held = [*held[:-1], *states_over_time, outputs[-1], projected]
        x = outputs[0] if len(outputs) == 1 else concat(tape, outputs, 2)
        tape.hold(held)
        if depth < len(weights) - 1:
            x = dropout(tape, x, p)
    last = _stack(tape, finals)
    tape.hold(finals)
    return x, last


def _gru_steps(tape: Tape, steps: Sequence[Tensor], h: Tensor, weights: Weights, *, backwards: bool) -> list[Tensor]:
    """Return the hidden state of every step, in the order of time."""
    states = []
    for gates in reversed(steps) if backwards else steps:
        h = _gru_cell(tape, gates, h, weights)
        states.append(h)
    return states[::-1] if backwards else states


def _gru_cell(tape: Tape, gates: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """``GRUCell``: r, z = sigmoid, n = tanh(x_n + r * h_n), h' = (h - n) * z + n, mostly in place."""
    width = h.shape[-1]
    x_reset, x_update, x_new = split(tape, gates, [width] * 3, 1)
    h_reset, h_update, h_new = split(tape, linear(tape, h, weights.hidden, weights.hidden_bias), [width] * 3, 1)
    reset = unary(tape, "sigmoid", add(tape, h_reset, x_reset, inplace=True), inplace=True)
    update = unary(tape, "sigmoid", add(tape, h_update, x_update, inplace=True), inplace=True)
    new = add(tape, x_new, mul(tape, h_new, reset, inplace=True))
    new = unary(tape, "tanh", new, inplace=True)
    return add(tape, mul(tape, _sub(tape, h, new), update, inplace=True), new, inplace=True)


def _sub(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    y = tape.emit("sub", (a, b), like(a))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (grad if needs[0] else None, tape.emit("neg", (grad,), like(b)) if needs[1] else None)

    tape.differentiate((a, b), y, (), backward)
    return y


def _unbind(tape: Tape, x: Tensor) -> list[Tensor]:
    """Views of x[0], x[1], ...; their gradients are stacked."""
    rows = [tape.alias(x, x.shape[1:], kind="select") for _ in range(x.shape[0])]

    def backward(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
        whole = [tape.emit("zeros", (), Type(x.shape[1:], x.dtype)) if g is None else g for g in grads]
        return (tape.emit("stack", whole, Type(x.shape, x.dtype)),)

    tape.differentiate_many((x,), rows, (), backward)
    return rows


def _stack(tape: Tape, rows: Sequence[Tensor]) -> Tensor:
    """Join along a new first dimension; gradients are views of rows."""
    y = tape.emit("stack", rows, Type((len(rows), *rows[0].shape), rows[0].dtype))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return [tape.alias(grad, row.shape, kind="select", contiguous=tape.is_contiguous(grad)) for row in rows]

    tape.differentiate(rows, y, (), backward)
    return y


# -- cuDNN -----------------------------------------------------------------------------------------


def cudnn_reserve(gates: int, per_layer: int, layers: int, *, dropout: bool) -> int:
    """Return the values that cuDNN keeps for its backward; *per_layer*: steps x batch x units of one layer.

    What backward has to know of an LSTM, activated gates and cell state, is 5 values per unit and step; a GRU keeps 6,
    where 3 gates would do. Between layers their outputs, and dropout's masks. Both counts are exact for the reserves
    that were published for 4 layers of 320 units: 736,000,000 bytes of the LSTM, 864,000,000 of the GRU
    (pytorch/pytorch issue 2895, read from ``cudnnGetRNNTrainingReserveSize``).
    """
    kept = {4: 5, 3: 6}.get(gates, gates)
    return per_layer * (layers * kept + (layers - 1) * (2 if dropout else 1))


def cudnn_rnn(
    tape: Tape, x: Tensor, states: Sequence[Tensor], weights: Sequence[Sequence[Weights]], p: float
) -> tuple[Tensor, ...]:
    """All layers in one call. x: (T, B, in); states: h, and c for an LSTM.

    Source: aten/src/ATen/native/cudnn/RNN.cpp. Parameters are views of one flat buffer, and so are
    their gradients. cuDNN does not publish the size of its reserve space and workspace
    (cudnnGetRNNTempSpaceSizes): see `cudnn_reserve`; no workspace is counted.
    """
    flat = [t for directions in weights for w in directions for t in w.tensors]
    x, *cast = tape.low_precision(tape.contiguous(x), *states, *flat)
    states, flat = cast[: len(states)], cast[len(states) :]
    steps, batch, _ = x.shape
    ways, width = len(weights[0]), weights[0][0].hidden.shape[1]
    gates = weights[0][0].hidden.shape[0] // width
    per_layer = steps * batch * ways * width
    reserve = cudnn_reserve(gates, per_layer, len(weights), dropout=bool(p and tape.training))
    results = [Type((steps, batch, ways * width), x.dtype), *(like(state) for state in states)]
    if tape.gradients:
        results.append(Type((reserve,), x.dtype))
    flops = 2 * steps * batch * sum(t.size for t in flat if len(t.shape) == 2)
    operands = (x, *states, *flat)
    outputs = tape.emit_many("cudnn_rnn", operands, results, flops=flops)
    kept = (*operands, outputs[0], *outputs[1 + len(states) :])

    def backward(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
        incoming = [
            tape.emit("zeros_like", (), like(t)) if g is None else tape.contiguous(g)
            for g, t in zip(grads, outputs[: 1 + len(states)], strict=False)
        ]
        inputs = tape.emit_many(
            "cudnn_rnn_backward_input", (*incoming, *kept), [like(t) for t in (x, *states)], flops=flops
        )
        total = Type((sum(t.size for t in flat),), x.dtype)
        buffer = tape.emit("cudnn_rnn_backward_weight", (*incoming, *kept), total, flops=flops)
        tape.hold([*incoming, *inputs])
        parts = [tape.alias(buffer, t.shape) for t in flat]
        return [result if need else None for result, need in zip((*inputs, *parts), needs, strict=True)]

    tape.differentiate_many(operands, outputs, kept, backward)
    return outputs[: 1 + len(states)]


# -- op kinds --------------------------------------------------------------------------------------


def _weights(owned: Mapping[str, Tensor], attributes: Attributes) -> list[list[Weights]]:
    def one(suffix: str) -> Weights:
        return Weights(
            owned[f"weight_ih_{suffix}"],
            owned[f"weight_hh_{suffix}"],
            owned.get(f"bias_ih_{suffix}"),
            owned.get(f"bias_hh_{suffix}"),
        )

    ways = ("", "_reverse") if attributes["bidirectional"] else ("",)
    return [[one(f"l{layer}{way}") for way in ways] for layer in range(attributes["layers"])]


def _infer(gates: int, states: int, types: Sequence[Type], attributes: Attributes) -> Signature:
    x = types[0]
    if len(x.shape) != 3:
        order = "(batch, steps, features)" if attributes["batch_first"] else "(steps, batch, features)"
        raise ShapeError(f"a recurrent layer needs {order}, not {list(x.shape)}")
    hidden, layers = attributes["hidden"], attributes["layers"]
    ways = ("", "_reverse") if attributes["bidirectional"] else ("",)
    batch = x.shape[0] if attributes["batch_first"] else x.shape[1]
    state = Type((layers * len(ways), batch, hidden), x.dtype)
    if len(types) not in (1, 1 + states):
        raise ShapeError(f"takes the input alone or with {states} initial state{'s' * (states > 1)}")
    for given in types[1:]:
        if given.shape != state.shape:
            raise ShapeError(f"an initial state must have shape {list(state.shape)}, not {list(given.shape)}")
    parameters = []
    for layer in range(layers):
        inner = x.shape[2] if layer == 0 else hidden * len(ways)
        for way in ways:
            parameters += [
                Parameter(f"weight_ih_l{layer}{way}", (gates * hidden, inner)),
                Parameter(f"weight_hh_l{layer}{way}", (gates * hidden, hidden)),
            ]
            if attributes["bias"]:
                parameters += [Parameter(f"bias_{side}_l{layer}{way}", (gates * hidden,)) for side in ("ih", "hh")]
    outputs = (Type((*x.shape[:2], hidden * len(ways)), x.dtype), *[state] * states)
    return Signature(outputs, tuple(parameters))


def _lower(
    states: int, tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes
) -> tuple[Tensor, ...]:
    x, *initial = inputs
    weights = _weights(owned, attributes)
    batch = x.shape[0] if attributes["batch_first"] else x.shape[1]
    shape = (len(weights) * len(weights[0]), batch, attributes["hidden"])
    zeros = [tape.emit("zeros", (), Type(shape, x.dtype)) for _ in range(states - len(initial))]
    run = cudnn_rnn if tape.target == "cuda" else onednn_lstm if states == 2 else native_gru
    swapped = _swap(tape, x) if attributes["batch_first"] else x
    y, *finals = run(tape, swapped, [*initial, *zeros], weights, attributes["dropout"])
    tape.hold([x, *zeros])
    if attributes["batch_first"]:
        y = _swap(tape, y)
    return (y, *finals)


def _swap(tape: Tape, x: Tensor) -> Tensor:
    """Exchange steps and batch, a view that is still in order only if one of them is 1."""
    shape = (x.shape[1], x.shape[0], *x.shape[2:])
    return tape.view(x, shape, kind="transpose", contiguous=1 in shape[:2] or prod(shape) == 0)


_ATTRIBUTES = (
    Attribute("hidden", "int", about="size of the hidden state", minimum=1),
    Attribute("layers", "int", 1, "layers on top of each other", minimum=1, maximum=256),
    Attribute("bidirectional", "bool", False, "a second set of weights runs backwards in time"),
    Attribute("dropout", "float", 0.0, "probability of zeroing, between layers", maximum=1),
    Attribute("batch_first", "bool", False, "input and output are (batch, steps, features)"),
    Attribute("bias", "bool", True),
)

KINDS = (
    Kind(
        "lstm",
        lambda types, attributes: _infer(4, 2, types, attributes),
        lambda tape, inputs, owned, attributes: _lower(2, tape, inputs, owned, attributes),
        _ATTRIBUTES,
        (1, 3),
        about="long short-term memory; outputs: sequence, last hidden, last cell; operands: input[, h0, c0]",
        source="aten/src/ATen/native/RNN.cpp, mkldnn/RNN.cpp, cudnn/RNN.cpp",
    ),
    Kind(
        "gru",
        lambda types, attributes: _infer(3, 1, types, attributes),
        lambda tape, inputs, owned, attributes: _lower(1, tape, inputs, owned, attributes),
        _ATTRIBUTES,
        (1, 2),
        about="gated recurrent unit; outputs: sequence, last hidden; operands: input[, h0]",
        source="aten/src/ATen/native/RNN.cpp, cudnn/RNN.cpp",
    ),
)
