"""What is asked of several GPUs: wrappers around the user's model, the ranks that differ, and what they send."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from rank_plans import Block, Net, tokens  # noqa: E402
from torch import nn  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError, UsageError  # noqa: E402


def small():
    return Net(width=8, blocks=2, vocabulary=16)


def test_ranks_are_listed_with_what_they_send():
    report = gs.peak(small, tokens, gpus=2, ddp=True, target="cpu", optimizer="sgd")
    plain = gs.peak(small, tokens, target="cpu", optimizer="sgd")
    gradients = sum(p.numel() * p.itemsize for p in small().parameters())
    assert [row.ranks for row in report.ranks] == [(0, 1)]
    assert report.ranks[0].peak_bytes == report.steady.peak_bytes > plain.steady.peak_bytes
    assert report.ranks[0].sent["all_reduce"] == gradients  # 2 (n - 1) / n of them, n = 2
    assert json.loads(report.to_json())["ranks"][0]["sent"]["all_reduce"] == gradients
    text = str(report)
    assert "Ranks, worst first" in text
    assert "ddp: DistributedDataParallel over 2 ranks" in text
    assert "rank 0 of 2" in text


def test_blocks_are_sharded_and_split_over_both_dimensions_of_a_mesh():
    asked = {"gpus": 4, "fsdp": True, "tp": 2, "rank": 3, "target": "cpu", "optimizer": "sgd"}
    report = gs.peak(small, tokens, **asked)
    assert report.rank == 3
    assert report.parallel == (
        "tp: 2 x up, 2 x down, over 2 ranks",
        "fsdp: fully_shard of 2 x Block and of the whole, over 2 ranks",
    )
    assert report.parameter_bytes < gs.peak(small, tokens, target="cpu", optimizer="sgd").parameter_bytes / 2


def sequence():
    return nn.Sequential(*(Block(8) for _ in range(2)))


def test_a_model_that_is_a_sequence_of_blocks_is_sharded_and_split_by_them():
    asked = {"gpus": 4, "fsdp": True, "tp": 2, "rank": 0, "target": "cpu", "optimizer": "sgd"}
    report = gs.peak(sequence, lambda: torch.zeros(2, 4, 8), **asked)
    assert report.parallel == (
        "tp: 2 x up, 2 x down, over 2 ranks",
        "fsdp: fully_shard of 2 x Block and of the whole, over 2 ranks",
    )


def test_what_is_kept_to_the_backward_pass_is_gathered_once():
    """`reshard_after_forward=False` against True: blocks are gathered in the forward pass alone."""
    asked = {"gpus": 2, "fsdp": True, "rank": 0, "target": "cpu", "optimizer": "sgd"}
    freed, kept = (gs.peak(small, tokens, reshard=reshard, **asked) for reshard in (True, False))
    parameters, blocks = (sum(p.numel() * p.itemsize for p in m.parameters()) for m in (small(), small().blocks))
    assert freed.ranks[0].sent["all_gather"] == (parameters + blocks) // 2
    assert kept.ranks[0].sent["all_gather"] == parameters // 2
    assert kept.parallel[0].endswith("not resharded after forward")


def test_states_are_sharded_by_whole_parameters_and_the_rank_with_most_is_shown():
    """PyTorch gives each parameter, the largest first, to the rank that has least."""
    asked = {"gpus": 2, "ddp": True, "target": "cpu", "optimizer": "momentum"}
    report = gs.peak(small, tokens, zero1=True, **asked)
    held = [0, 0]
    for size in sorted((p.numel() * p.itemsize for p in small().parameters()), reverse=True):
        held[held.index(min(held))] += size
    most = held.index(max(held))
    assert {row.ranks for row in report.ranks} == {(0,), (1,)}
    by_rank = {row.ranks[0]: row for row in report.ranks}
    assert by_rank[most].peak_bytes - by_rank[1 - most].peak_bytes == abs(held[0] - held[1])
    assert report.ranks[0].sent["broadcast"] >= sum(held)
    assert report.steady.by_role_at_peak["optimizer_state"] == max(held)


def test_a_step_that_goes_around_the_wrapped_model_is_refused():
    model = small()

    def step(_, batch, optimizer):
        model(batch).backward()
        optimizer.step()

    with pytest.raises(CaptureError, match="nothing is sent in a step"):
        gs.peak(model, tokens, step=step, gpus=2, ddp=True, rank=0, target="cpu")


def test_an_optimizer_over_parameters_that_are_sharded_later_is_refused():
    model = small()
    made = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="--fsdp is not for"):
        gs.peak(model, tokens, optimizer=made, gpus=2, fsdp=True, rank=0, target="cpu")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fsdp": True}, "--fsdp is for several GPUs"),
        ({"gpus": 2, "ddp": True, "fsdp": True}, "ddp keeps whole copies"),
        ({"gpus": 2, "rank": 2}, "no rank 2 of 2"),
        ({"gpus": 2, "fsdp": True, "zero1": True}, "zero1 shards the optimizer's states"),
        ({"gpus": 2, "ddp": True, "reshard": False}, "no-reshard keeps what fsdp gathered"),
        ({"gpus": 2, "ddp": True, "zero1": True, "optimizer": "muon"}, "--zero1 wraps one optimizer"),
        ({"gpus": 4, "tp": 3}, "--tp 3 does not divide --gpus 4"),
        ({"gpus": 4, "tp": 2}, "leaves 2 copies: add --fsdp"),
    ],
)
def test_what_does_not_go_together_is_refused(options, reason):
    with pytest.raises(UsageError, match=reason):
        gs.peak(small, tokens, target="cpu", **options)


def test_several_gpus_are_for_captured_models():
    with pytest.raises(UsageError, match="--gpus 8 is not for"):
        gs.peak("lenet5", gpus=8)
