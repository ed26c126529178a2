"""torch.optim's ``_multi_tensor_*`` functions: a kernel per operation over all parameters at once.

All trainable parameters have one dtype and one device, so that there is one group.
"""

from __future__ import annotations

from graphsim.ops.elementwise import like
from graphsim.optimizers.update import SCALAR, Update


def sgd(u: Update, *, momentum: bool = False, nesterov: bool = False) -> None:
    """torch/optim/sgd.py, _multi_tensor_sgd. Nesterov's look-ahead is added into the gradients themselves."""
    grads = u.gradients
    if momentum:
        if u.first:
            for param, grad in u.each():
                u.create("clone", param, "momentum_buffer", like(grad), grad)
        bufs = u.all("momentum_buffer")
        if not u.first:
            u.foreach_("_foreach_mul_", bufs)
            u.foreach_("_foreach_add_", bufs, grads)
        if nesterov:
            u.foreach_("_foreach_add_", grads, bufs)
        else:
            grads = bufs
    u.foreach_("_foreach_add_", u.parameters, grads)


def adam(u: Update, *, weight_decay: bool = False, amsgrad: bool = False) -> None:
    """torch/optim/adam.py, _multi_tensor_adam; *weight_decay* is decoupled (AdamW)."""
    exp_avgs, exp_avg_sqs = u.all("exp_avg"), u.all("exp_avg_sq")
    _count(u)
    if weight_decay:
        u.foreach_("_foreach_mul_", u.parameters)
    u.foreach_("_foreach_lerp_", exp_avgs, u.gradients)
    u.foreach_("_foreach_mul_", exp_avg_sqs)
    u.foreach_("_foreach_addcmul_", exp_avg_sqs, u.gradients)
    if amsgrad:
        max_exp_avg_sqs = u.all("max_exp_avg_sq")
        u.foreach_("_foreach_maximum_", max_exp_avg_sqs, exp_avg_sqs)
        exp_avg_sqs = max_exp_avg_sqs
    exp_avg_sq_sqrt = u.foreach("_foreach_sqrt", [like(p) for p in u.parameters], exp_avg_sqs)
    u.foreach_("_foreach_div_", exp_avg_sq_sqrt)
    u.foreach_("_foreach_add_", exp_avg_sq_sqrt)
    u.foreach_("_foreach_addcdiv_", u.parameters, exp_avgs, exp_avg_sq_sqrt)


def _count(u: Update) -> None:
    """Advance the counters: by one CPU tensor if they live there."""
    steps = [u.states[f"{p.name}.step"] for p in u.parameters if f"{p.name}.step" in u.states]
    if steps:
        one = u.new("tensor", SCALAR)
        u.foreach_("_foreach_add_", steps, [one])
