"""torch.optim's ``_single_tensor_*`` functions: a loop over parameters, a kernel per operation."""

from __future__ import annotations

from graphsim.graph import Tensor
from graphsim.ops.elementwise import like
from graphsim.optimizers.update import Update


def sgd(u: Update, *, momentum: bool = False, nesterov: bool = False) -> None:
    """torch/optim/sgd.py, _single_tensor_sgd."""
    for param, grad in u.each():
        u.delete("grad")
        if momentum:
            if u.first:
                u.create("clone", param, "momentum_buffer", like(grad), grad)
            buf = u.state(param, "momentum_buffer")
            if not u.first:
                u.inplace("mul_", buf)
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
            u.inplace("mul_", param)
        u.inplace("lerp_", exp_avg, grad)
        u.inplace("mul_", exp_avg_sq)
        u.inplace("addcmul_", exp_avg_sq, grad)
        if amsgrad:
            max_exp_avg_sq = u.state(param, "max_exp_avg_sq")
            u.inplace("maximum_", max_exp_avg_sq, exp_avg_sq)
            exp_avg_sq = max_exp_avg_sq
        denom = u.new("div", like(param), u.new("sqrt", like(param), exp_avg_sq))
        u.inplace("add_", denom)
        u.bind("denom", denom)
        u.inplace("addcdiv_", param, exp_avg, denom)


def _count(u: Update, param: Tensor) -> None:
    """``step_t += 1``; the counter is a tensor of the target only where `states` says so."""
    name = f"{param.name}.step"
    if name in u.states:
        u.inplace("add_", u.states[name])
