"""What is asked of several GPUs: wrappers around the user's model, the ranks that differ, and what they send."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from rank_plans import Net, tokens  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import UsageError  # noqa: E402


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


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fsdp": True}, "--fsdp is for several GPUs"),
        ({"gpus": 2, "ddp": True, "fsdp": True}, "ddp keeps whole copies"),
        ({"gpus": 2, "rank": 2}, "no rank 2 of 2"),
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
