"""`--assume`: a number by which the user's step decides is given by the line that reads it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from command_line import graphsim

MODULE = """\
import torch


def step(model, batch, optimizer):
    loss = model(batch).mean()
    loss.backward()
    if loss.item() > 3:
        return
    optimizer.step()
    optimizer.zero_grad()


def make():
    return torch.nn.Linear(8, 8), torch.randn(4, 8), step
"""
PLACE = "skips_large_losses.py:7"
PEAK = ("peak", "torch:skips_large_losses:make", "--target", "cpu", "--json")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "skips_large_losses.py").write_text(MODULE)
    return tmp_path


def test_the_error_says_what_to_give_and_with_it_there_is_an_answer(folder):
    refused = graphsim(*PEAK, cwd=folder)
    assert refused.returncode == 2
    assert f"--assume {PLACE}=VALUE" in refused.stderr
    answer = graphsim(*PEAK, "--assume", f"{PLACE}=1", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["provenance"]["training"]["assume"] == [[PLACE, 1.0]]


@pytest.mark.parametrize("given", ["1", f"{PLACE}=", "=1", f"{PLACE}=much"])
def test_what_is_no_place_with_a_number_is_refused(folder, given):
    refused = graphsim(*PEAK, "--assume", given, cwd=folder)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "write FILE.py:LINE=VALUE" in refused.stderr


def test_a_spec_has_no_such_lines():
    refused = graphsim("peak", "lenet5", "--assume", f"{PLACE}=1")
    assert refused.returncode == 2
    assert "--assume" in refused.stderr
