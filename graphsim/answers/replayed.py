"""The predicted mallocs and frees of any source, executed for real."""

from __future__ import annotations

from typing import Any, Unpack

from graphsim.answers.setting import Setting, asked, spelled_out
from graphsim.core.liveness import Policy
from graphsim.core.simulation import simulate
from graphsim.measured.backends import Backend
from graphsim.measured.replay import Replay, replay_run


@spelled_out
def replay(
    source: Any,
    inputs: Any = None,
    *,
    backend: str | Backend = "numpy",
    backend_options: str = "",
    lockstep: bool = False,
    compute: bool = False,
    policy: Policy = "eager",
    first: bool = False,
    **setting: Unpack[Setting],
) -> Replay:
    """Execute the mallocs and frees of a step of *source* on a backend, and compare them with the prediction.

    Examples:
        >>> replay("lenet5", batch=2).matches
        True

    Args:
        source: as `peak` takes it.
        inputs: of a module.
        backend, backend_options, lockstep, compute: see `replay_run`.
        policy: as of `peak`.
        first: step 1, which creates the optimizer states, instead of the steady step.

    Raises:
        GraphSimError: the source cannot be read or trained, the backend is not available, or an option is wrong.
    """
    question = asked(source, inputs, setting)
    steps = question.source.steps(question.training)
    run = simulate(steps.step(first=first), policy=policy)
    return replay_run(run, backend, options=backend_options, lockstep=lockstep, compute=compute)
