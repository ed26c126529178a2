"""torch.optim's ``_fused_*`` functions: one kernel does the whole update in registers."""

from __future__ import annotations

from graphsim.step.ops.elementwise import like
from graphsim.step.optimizers.update import Update


def sgd(u: Update, *, momentum: bool = False) -> None:
    """torch/optim/sgd.py, _fused_sgd."""
    bufs = []
    if momentum:
        if u.first:
            for param, grad in u.each():
                u.create("empty_like", param, "momentum_buffer", like(grad))
        bufs = u.all("momentum_buffer")
    u.foreach_("_fused_sgd_", [*u.parameters, *bufs], u.gradients)


def adaptive(u: Update, *, kernel: str, states: tuple[str, ...]) -> None:
    """torch/optim/adam.py, _fused_adam, and adagrad.py, _fused_adagrad: the counters, then one kernel."""
    steps = u.all("step")
    u.foreach_("_foreach_add_", steps, number=True)
    tensors = [tensor for state in states for tensor in u.all(state)]
    u.foreach_(kernel, [*u.parameters, *tensors], u.gradients, steps)
