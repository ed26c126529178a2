"""A solver for ``torch.compile``'s partitioner whose memory budget bounds the true backward peak.

    import torch, graphsim.torch_compile

    torch._functorch.config.activation_memory_budget_solver = graphsim.torch_compile.PeakSolver()
    torch._functorch.config.activation_memory_budget = 0.3
    model = torch.compile(model)

PyTorch's own solvers bound the bytes saved between forward and backward pass. What they do not see is the backward
pass itself: values that lie side by side in the graph and are all recomputed come back all at once, and a smaller
budget can mean a higher peak (pytorch#197838). `PeakSolver` scores the backward graph that the partitioner would
emit, in the order in which it emits it, storage by storage.

Needs PyTorch 2.13 or later (extra 'torch').
"""

from __future__ import annotations

from graphsim.errors import MissingExtraError

try:
    from graphsim.torch_compile.solver import STEPS, PeakSolver
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "torch":
        raise
    raise MissingExtraError("torch", "torch") from None

__all__ = ["STEPS", "PeakSolver"]
