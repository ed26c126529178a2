"""torch.optim's ``_multi_tensor_*`` functions: a kernel per operation over all parameters at once.

All trainable parameters have one dtype and one device, so that there is one group (Adafactor: one
of matrices, one of vectors). On the CPU a foreach kernel is a loop over the list.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.tape import Type
from graphsim.step.optimizers.update import SCALAR, Update


def sgd(u: Update, *, momentum: bool = False, nesterov: bool = False) -> None:
    """torch/optim/sgd.py, _multi_tensor_sgd. Nesterov's look-ahead is added into the gradients themselves."""
    grads = u.gradients
    if momentum:
        if u.first:
            for param, grad in u.each():
                u.create("clone", param, "momentum_buffer", like(grad), grad)
        bufs = u.all("momentum_buffer")
        if not u.first:
            u.foreach_("_foreach_mul_", bufs, number=True)
            u.foreach_("_foreach_add_", bufs, grads)
        if nesterov:
            u.foreach_("_foreach_add_", grads, bufs)
        else:
            grads = bufs
    u.foreach_("_foreach_add_", u.parameters, grads)


def adam(u: Update, *, weight_decay: bool = False, amsgrad: bool = False) -> None:
    """torch/optim/adam.py, _multi_tensor_adam; *weight_decay* is decoupled (AdamW)."""
    exp_avgs, exp_avg_sqs = u.all("exp_avg"), u.all("exp_avg_sq")
    _count(u, u.parameters)
    if weight_decay:
        u.foreach_("_foreach_mul_", u.parameters, number=True)
    u.foreach_("_foreach_lerp_", exp_avgs, u.gradients)
    u.foreach_("_foreach_mul_", exp_avg_sqs, number=True)
    u.foreach_("_foreach_addcmul_", exp_avg_sqs, u.gradients)
    if amsgrad:
        max_exp_avg_sqs = u.all("max_exp_avg_sq")
        u.foreach_("_foreach_maximum_", max_exp_avg_sqs, exp_avg_sqs)
        exp_avg_sqs = max_exp_avg_sqs
    exp_avg_sq_sqrt = u.foreach("_foreach_sqrt", _likes(u.parameters), exp_avg_sqs)
    u.foreach_("_foreach_div_", exp_avg_sq_sqrt, number=True)
    u.foreach_("_foreach_add_", exp_avg_sq_sqrt, number=True)
    u.foreach_("_foreach_addcdiv_", u.parameters, exp_avgs, exp_avg_sq_sqrt)


def adagrad(u: Update) -> None:
    """torch/optim/adagrad.py, _multi_tensor_adagrad."""
    state_sums = u.all("sum")
    _count(u, u.parameters)
    u.foreach_("_foreach_addcmul_", state_sums, u.gradients)
    std = u.foreach("_foreach_sqrt", _likes(u.parameters), state_sums)
    u.foreach_("_foreach_add_", std, number=True)
    numerator = u.foreach("_foreach_mul", _likes(u.gradients), u.gradients, number=True)
    u.foreach_("_foreach_addcdiv_", u.parameters, numerator, std)


def rmsprop(u: Update) -> None:
    """torch/optim/rmsprop.py, _multi_tensor_rmsprop."""
    square_avgs = u.all("square_avg")
    _count(u, u.parameters)
    u.foreach_("_foreach_mul_", square_avgs, number=True)
    u.foreach_("_foreach_addcmul_", square_avgs, u.gradients)
    avg = u.foreach("_foreach_sqrt", _likes(u.parameters), square_avgs)
    u.foreach_("_foreach_add_", avg, number=True)
    u.foreach_("_foreach_addcdiv_", u.parameters, u.gradients, avg)


def adafactor(u: Update) -> None:
    """torch/optim/_adafactor.py, _multi_tensor_adafactor: matrices and vectors are groups of their own.

    The updates of the first group live on, as the loop's variable, until the second has its own.
    """
    matrix = [len(p.shape) > 1 for p in u.parameters]
    for is_matrix in dict.fromkeys(matrix):
        pairs = zip(u.parameters, u.gradients, matrix, strict=True)
        params, grads = zip(*((p, g) for p, g, m in pairs if m is is_matrix), strict=True)
        _count(u, params)
        for param in params:
            u.new("norm", Type((), param.dtype), param)
        estimates = _factored_variances(u, params, grads) if is_matrix else _variances(u, params, grads)
        u.foreach_("_foreach_clamp_min_", estimates)
        u.foreach_("_foreach_rsqrt_", estimates)
        u.foreach_("_foreach_mul_", estimates, grads)
        u.bind("updates", *estimates)
        for estimate in estimates:
            u.new("norm", Type((), estimate.dtype), estimate)
        u.foreach_("_foreach_mul_", estimates, number=True)
        u.foreach_("_foreach_add_", params, estimates)


def _factored_variances(u: Update, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    factors = [[u.state(p, name) for p in params] for name in ("row_var", "col_var")]
    for factor in factors:
        means = u.foreach("norm", _likes(factor), grads)
        u.foreach_("_foreach_mul_", means)
        u.foreach_("_foreach_div_", means, number=True)
        u.foreach_("_foreach_lerp_", factor, means)
    rows, columns = factors
    estimates = u.foreach("matmul", _likes(grads), rows, columns)
    u.bind("var_estimates", *estimates)
    totals = [u.mean(Type((*g.shape[:-2], 1, 1), g.dtype), row) for g, row in zip(grads, rows, strict=True)]
    u.foreach_("_foreach_clamp_min_", totals)
    u.foreach_("_foreach_div_", estimates, totals)
    return estimates


def _variances(u: Update, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    variances = [u.state(p, "variance") for p in params]
    squared = u.foreach("_foreach_mul", _likes(grads), grads)
    u.foreach_("_foreach_lerp_", variances, squared)
    estimates = u.foreach("clone", _likes(variances), variances)
    u.bind("var_estimates", *estimates)
    return estimates


def _likes(tensors: Sequence[Tensor]) -> list[Type]:
    return [like(tensor) for tensor in tensors]


def _count(u: Update, params: Sequence[Tensor]) -> None:
    """Advance the counters by a CPU tensor, if they are tensors of the target."""
    steps = [u.states[f"{p.name}.step"] for p in params if f"{p.name}.step" in u.states]
    if steps:
        u.foreach_("_foreach_add_", steps, [u.new("tensor", SCALAR)])
