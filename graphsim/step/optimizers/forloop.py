"""torch.optim's ``_single_tensor_*`` functions: a loop over parameters, a kernel per operation."""

from __future__ import annotations

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.tape import Type
from graphsim.step.optimizers.update import Update


def sgd(u: Update, *, momentum: bool = False, nesterov: bool = False) -> None:
    """torch/optim/sgd.py, _single_tensor_sgd."""
    for param, grad in u.each():
        u.delete("grad")
        if momentum:
            if u.first:
                u.create("clone", param, "momentum_buffer", like(grad), grad)
            buf = u.state(param, "momentum_buffer")
            if not u.first:
                u.inplace("mul_", buf, number=True)
                u.inplace("add_", buf, grad)
            if nesterov:
                grad = u.new("add", like(grad), grad, buf)
                u.bind("grad", grad)
            else:
                grad = buf
        u.inplace("add_", param, grad)


def adam(u: Update, *, weight_decay: bool = False, amsgrad: bool = False) -> None:
    """torch/optim/adam.py, _single_tensor_adam; *weight_decay* is decoupled (AdamW)."""
    for param, grad in u.each():
        exp_avg, exp_avg_sq = u.state(param, "exp_avg"), u.state(param, "exp_avg_sq")
        _count(u, param)
        if weight_decay:
            u.inplace("mul_", param, number=True)
        u.inplace("lerp_", exp_avg, grad)
        u.inplace("mul_", exp_avg_sq, number=True)
        u.inplace("addcmul_", exp_avg_sq, grad)
        if amsgrad:
            max_exp_avg_sq = u.state(param, "max_exp_avg_sq")
            u.inplace("maximum_", max_exp_avg_sq, exp_avg_sq)
            exp_avg_sq = max_exp_avg_sq
        denom = u.new("div", like(param), u.new("sqrt", like(param), exp_avg_sq), number=True)
        u.inplace("add_", denom, number=True)
        u.bind("denom", denom)
        u.inplace("addcdiv_", param, exp_avg, denom)


def adagrad(u: Update) -> None:
    """torch/optim/adagrad.py, _single_tensor_adagrad."""
    for param, grad in u.each():
        _count(u, param)
        state_sum = u.state(param, "sum")
        u.inplace("addcmul_", state_sum, grad)
        std = u.new("sqrt", like(param), state_sum)
        u.inplace("add_", std, number=True)
        u.bind("std", std)
        u.inplace("addcdiv_", param, grad, std)


def rmsprop(u: Update) -> None:
    """torch/optim/rmsprop.py, _single_tensor_rmsprop."""
    for param, grad in u.each():
        square_avg = u.state(param, "square_avg")
        _count(u, param)
        u.inplace("mul_", square_avg, number=True)
        u.inplace("addcmul_", square_avg, grad)
        avg = u.new("sqrt", like(param), square_avg)
        u.bind("avg", avg)
        u.inplace("add_", avg, number=True)
        u.inplace("addcdiv_", param, grad, avg)


def adafactor(u: Update) -> None:
    """torch/optim/_adafactor.py, _single_tensor_adafactor (Shazeer and Stern, 2018)."""
    for param, grad in u.each():
        _count(u, param)
        u.new("norm", Type((), param.dtype), param)
        estimate = _factored_variance(u, param, grad) if len(grad.shape) > 1 else _variance(u, param, grad)
        u.inplace("clamp_", estimate)
        u.inplace("rsqrt_", estimate)
        u.bind("update", estimate)
        u.inplace("mul_", estimate, grad)
        u.new("norm", Type((), param.dtype), estimate)
        u.inplace("add_", param, estimate)


def _factored_variance(u: Update, param: Tensor, grad: Tensor) -> Tensor:
    """The outer product of the running means of rows and columns."""
    row_var, col_var = u.state(param, "row_var"), u.state(param, "col_var")
    for name, factor in (("row_mean", row_var), ("col_mean", col_var)):
        mean = u.new("norm", like(factor), grad)
        u.inplace("square_", mean)
        u.inplace("div_", mean, number=True)
        u.bind(name, mean)
        u.inplace("lerp_", factor, mean)
    estimate = u.new("matmul", like(grad), row_var, col_var)
    u.bind("var_estimate", estimate)
    total = u.mean(Type((*grad.shape[:-2], 1, 1), grad.dtype), row_var)
    u.inplace("clamp_", total)
    u.inplace("div_", estimate, total)
    return estimate


def _variance(u: Update, param: Tensor, grad: Tensor) -> Tensor:
    squared = u.new("mul", like(grad), grad)
    u.bind("grad_squared", squared)
    u.inplace("lerp_", u.state(param, "variance"), squared)
    estimate = u.new("clone", like(grad), u.state(param, "variance"))
    u.bind("var_estimate", estimate)
    return estimate


def lion(u: Update) -> None:
    """lion_pytorch/lion_pytorch.py of lion-pytorch 0.2, update_fn (Chen et al., 2023)."""
    for param, grad in u.each():
        if u.first:
            u.create("zeros_like", param, "exp_avg", like(param))
        exp_avg = u.state(param, "exp_avg")
        with u.function():
            u.inplace("mul_", param, number=True)
            scaled = u.new("clone", like(param), exp_avg)
            u.inplace("mul_", scaled, number=True)
            update = u.new("add", like(param), scaled, grad)
            u.bind("update", update)
            u.inplace("sgn_", update)
            u.inplace("add_", param, update)
            u.inplace("mul_", exp_avg, number=True)
            u.inplace("add_", exp_avg, grad)


def _count(u: Update, param: Tensor) -> None:
    """``step_t += 1``, where the counter is a tensor of the target."""
    name = f"{param.name}.step"
    if name in u.states:
        u.inplace("add_", u.states[name], number=True)
