"""bitsandbytes' 8-bit Adam (0.50): states in 8 bits with a scale per block (Dettmers et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.tape import Type
from graphsim.step.optimizers.update import Update

BLOCK = 256
"""Elements that share one scale (bitsandbytes/optim/optimizer.py, Optimizer2State.init_state)."""
SMALLEST = 4096
"""Parameters of fewer elements keep fp32 states (min_8bit_size)."""
BOOKS = ("optimizer.qmap1", "optimizer.qmap2")
CODES = Type((256,))
"""A code book: the value of each of the 256 codes, signed for the first state, unsigned for the second."""


def states_of(param: Tensor) -> dict[str, Type]:
    """Return the states of a parameter: 8-bit values and a scale per block, or plain fp32."""
    if param.size < SMALLEST:
        return dict.fromkeys(("state1", "state2"), Type(param.shape))
    values, scales = Type(param.shape, "uint8"), Type((-(-param.size // BLOCK),))
    return {"state1": values, "state2": values, "absmax1": scales, "absmax2": scales}


def adam(u: Update) -> None:
    """bitsandbytes/optim/optimizer.py, Optimizer8bit.step: states are made right before their first update.

    The optimizer makes its two code books on the host, when it is constructed, and moves them when a
    parameter first needs them. On CUDA one kernel updates a parameter in registers; the CPU backend
    is written in PyTorch.
    """
    native = u.tape.target == "cuda"
    if not native:
        _code_books(u, made=True)
    for param, grad in u.each():
        types = states_of(param)
        quantized = "absmax1" in types
        if quantized:
            _code_books(u, made=not u.first)
        if u.first:
            for name, type_ in types.items():
                u.create("zeros", param, name, type_)
        states = {name: u.state(param, name) for name in types}
        if native:
            u.foreach_("optimizer_update", [param, *states.values()], [grad])
        else:
            with u.function():
                (_update_8bit if quantized else _update_32bit)(u, param, grad, states)


def _code_books(u: Update, *, made: bool) -> None:
    for name in BOOKS:
        u.shared(name, CODES, made=made)


def _update_8bit(u: Update, param: Tensor, grad: Tensor, states: Mapping[str, Tensor]) -> None:
    """bitsandbytes/backends/cpu/ops.py, _optimizer_update_8bit_blockwise_cpu."""
    averages = []
    for i, book in enumerate(BOOKS, 1):
        stored = states[f"state{i}"], states[f"absmax{i}"], u.states[book]
        averages.append(u.new("dequantize_blockwise", Type(param.shape), *stored))
        u.bind(f"state{i}_fp32", averages[-1])
    exp_avg, exp_avg_sq = averages
    grad, wide = _widened(u, param, grad)
    _advance(u, exp_avg, exp_avg_sq, grad)
    denom = u.new("div", like(exp_avg_sq), u.new("sqrt", like(exp_avg_sq), exp_avg_sq), number=True)
    u.bind("denom", denom)
    u.inplace("add_", denom, number=True)
    u.inplace("addcdiv_", wide, exp_avg, denom)
    u.inplace("copy_", param, wide)
    for i, (average, book) in enumerate(zip(averages, BOOKS, strict=True), 1):
        targets = [states[f"state{i}"], states[f"absmax{i}"]]
        with u.function():
            codes = u.foreach("quantize_blockwise", [like(t) for t in targets], [average, u.states[book]])
            u.bind("codes", *codes)
            for target, value in zip(targets, codes, strict=True):
                u.inplace("copy_", target, value)


def _update_32bit(u: Update, param: Tensor, grad: Tensor, states: Mapping[str, Tensor]) -> None:
    """bitsandbytes/backends/cpu/ops.py, _optimizer_update_32bit_cpu."""
    exp_avg, exp_avg_sq = states["state1"], states["state2"]
    grad, wide = _widened(u, param, grad)
    _advance(u, exp_avg, exp_avg_sq, grad)
    denom = u.new("add", like(exp_avg_sq), u.new("sqrt", like(exp_avg_sq), exp_avg_sq), number=True)
    update = u.new("div", like(exp_avg), exp_avg, denom)
    u.bind("update", update)
    u.inplace("add_", wide, update)
    u.inplace("copy_", param, wide)


def _widened(u: Update, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scaled gradient and the parameter in fp32, which is the parameter itself if it is fp32."""
    narrow = param.dtype != "float32"
    scaled = u.new("mul", Type(grad.shape), u.new("to", Type(grad.shape), grad) if narrow else grad, number=True)
    wide = u.new("to", Type(param.shape), param) if narrow else param
    u.bind("grad", scaled)
    u.bind("p_fp32", *([wide] if narrow else []))
    return scaled, wide


def _advance(u: Update, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor) -> None:
    u.inplace("mul_", exp_avg, number=True)
    u.inplace("add_", exp_avg, grad)
    u.inplace("mul_", exp_avg_sq, number=True)
    u.inplace("addcmul_", exp_avg_sq, grad)
