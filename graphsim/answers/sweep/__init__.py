"""Sweeps: the peak of many settings as one table, in parallel, and never the same setting twice.

A *point* is one setting. A *grid* is the product of axes; the rows of the table stand in its order, the last
axis fastest. Every finished point is in the *journal* (beside the output, ``OUTPUT.journal``) before the next
result is looked at, keyed by the point, the text of its spec and the version of graphsim: what is killed goes on
from there, and a grid that grows computes only what is new.

The table, ``graphsim-sweep/1``; bytes are integers, an empty cell is what does not apply or was not asked:

=================================  ==================================================================================
source, batch, seq                 the model; batch and seq as simulated, where the model has them
(one column per other param)       what ``--set`` or the list sets
precision, optimizer,              what was asked, as `training.Training` names it
optimizer_impl, accumulation,
mode, target, policy
strategy, budget                   who chose the schedule, and within what
gpu, allocator, allocator_options  what it was simulated for
parameters                         of the model
peak_bytes, peak_phase, peak_op    peak live bytes of the steady step, and where it is
first_peak_bytes                   of step 1, which creates the optimizer states
reserved_peak_bytes,               with an allocator: what it holds in the steady step and in step 1, and the op at
first_reserved_peak_bytes,         which it runs out of its limit
out_of_memory
memory_bytes, need_bytes,          with a gpu: its memory, what PyTorch's allocator needs in step 1 or later, whether
fits, perhaps                      both and the largest context fit, or perhaps with a smaller one (see `answers.fit`)
budget_bytes, feasible             with a budget: in bytes, and whether the peak of the steady step is within
overhead                           extra cost of the schedule over executing every op once
step_seconds                       with a gpu: the steady step by its roofline, a lower bound
error                              why there is no result; else empty
graphsim, schema                   the version that computed the row; ``graphsim-sweep/1``
=================================  ==================================================================================
"""

from graphsim.answers.sweep.evaluation import evaluate
from graphsim.answers.sweep.listing import read_list
from graphsim.answers.sweep.points import Point, grid
from graphsim.answers.sweep.run import Summary, sweep
from graphsim.answers.sweep.table import SCHEMA
from graphsim.answers.sweep.workers import Workers, dask_cluster, local_processes

__all__ = [
    "SCHEMA",
    "Point",
    "Summary",
    "Workers",
    "dask_cluster",
    "evaluate",
    "grid",
    "local_processes",
    "read_list",
    "sweep",
]
