"""What trials cost, worked out in other processes meanwhile, is what it is here."""

from __future__ import annotations

import json
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext

import pytest

import graphsim as gs
from graphsim.answers import fit as fitting
from graphsim.answers import meanwhile
from graphsim.answers.meanwhile import asking, cost_of
from graphsim.answers.need import Trial
from graphsim.errors import UsageError
from graphsim.sources import source_of
from graphsim.step.training import Training

TRIAL = Trial(source_of("lenet5", batch=4), Training())
REFUSED = Trial(source_of("layered:20"), Training(precision="bf16"))


def promise_of(executor, trial, monkeypatch):
    monkeypatch.setattr(meanwhile, "processes", lambda count: nullcontext(executor))
    with asking(2**30, others=1) as ask:
        return ask(trial)


@pytest.mark.parametrize("fate", ["done", "not begun", "died"])
def test_what_no_other_process_found_is_worked_out_here(fate, monkeypatch):
    promise = promise_of(Elsewhere(fate), TRIAL, monkeypatch)
    assert promise() == cost_of(TRIAL, 2**30)


@pytest.mark.parametrize("fate", ["done", "not begun", "died"])
def test_a_refusal_is_said_here(fate, monkeypatch):
    promise = promise_of(Elsewhere(fate), REFUSED, monkeypatch)
    with pytest.raises(UsageError, match="as it stands"):
        promise()


@pytest.mark.exhaustive
def test_two_processes_answer_as_one(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(fitting, "WORTH_A_PROCESS", 0)
    answers = [
        gs.fit(f"hf:{tmp_path}/config.json", memory="2GiB", precision="bf16", lora=4, jobs=jobs) for jobs in (1, 2)
    ]
    assert answers[0] == answers[1]
    assert answers[0].choices


class Elsewhere(Executor):
    """Works at once, does not come to it, or dies."""

    def __init__(self, fate):
        self.fate = fate

    def submit(self, run, *args):
        future = Future()
        if self.fate != "not begun":
            future.set_running_or_notify_cancel()
        if self.fate == "died":
            future.set_exception(BrokenProcessPool("killed"))
        if self.fate == "done":
            future.set_result(run(*args))
        return future
