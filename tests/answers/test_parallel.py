"""Plans for several GPUs: each is what `peak` says of it, and DeepSpeed's rule what its documentation says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

sys.path.append(str(Path(__file__).parent.parent / "sources"))

from rank_plans import Net, sharded, tokens  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.answers.deepspeed import stage_2, stage_3  # noqa: E402
from graphsim.answers.parallel import choices  # noqa: E402
from graphsim.core.devices import DEVICES  # noqa: E402
from graphsim.core.streams import step_seconds  # noqa: E402
from graphsim.errors import UsageError  # noqa: E402
from graphsim.step.training import Training  # noqa: E402


def small():
    return Net(width=8, blocks=2, vocabulary=16)


@pytest.fixture(scope="module")
def answer():
    """One GPU's memory that is short: what is unknown at its most does not fit."""
    return gs.fit(small, tokens, gpus=2, memory="8GiB", optimizer="momentum", grad_checkpointing=True)


def test_the_plans_are_those_of_pytorch_for_the_mesh():
    plans = [" ".join(f"{name}={value}" for name, value in way.items()) for way in choices(Training(gpus=8))]
    assert plans[:7] == [
        "fsdp=True",
        "fsdp=True reshard=False",
        "ddp=True",
        "ddp=True zero1=True",
        "fsdp=True tp=2",
        "fsdp=True tp=4",
        "tp=8",
    ]
    assert plans[7:] == [f"{plan} grad_checkpointing=True" for plan in plans[:7]]


def test_each_plan_is_what_peak_says_of_it(answer):
    assert {plan.options for plan in answer.plans} == {
        "--fsdp", "--fsdp --no-reshard", "--ddp", "--ddp --zero1", "--tp 2",
    }  # fmt: skip
    by_options = {plan.options: plan for plan in answer.plans}
    for options in ("--ddp --zero1", "--tp 2"):
        plan = by_options[options]
        setting = {"gpus": 2, "optimizer": "momentum", "grad_checkpointing": True, **plan.training}
        report = gs.peak(small, tokens, allocator="torch", **setting)
        assert plan.peak_bytes == max(report.first.peak_bytes, report.steady.peak_bytes)
        assert plan.need_bytes == max(report.first.reserved_peak_bytes or 0, report.steady.reserved_peak_bytes or 0)
        assert (plan.sent_bytes, plan.rank) == (report.ranks[0].sent_bytes, report.rank)
    gradients = sum(p.numel() * p.itemsize for p in small().parameters())
    assert by_options["--ddp"].sent["all_reduce"] == gradients, "2 (n - 1) / n of them, n = 2"


def test_those_that_fit_come_first_by_the_time_of_a_sample(answer):
    times = [plan.sample_seconds for plan in answer.plans]
    assert all(plan.fits for plan in answer.plans)
    assert times == sorted(times)
    assert {plan.options: plan.samples for plan in answer.plans}["--tp 2"] == 8, "both GPUs work on the same samples"
    assert answer.plans[0].samples == 16
    best = answer.provenance["training"]
    assert all(best[name] == value for name, value in answer.plans[0].training.items())
    assert (answer.fits, answer.need_bytes) == (True, answer.plans[0].need_bytes)
    assert [one.what for one in answer.unknown] == ["NCCL's buffers"]


def test_people_and_machines_read_the_table(answer):
    text = str(answer)
    assert f"fits in 8.00 GiB on each of 2 GPUs by {answer.plans[0].options}" in text
    assert "Plans for 2 GPUs" in text
    assert "ZeRO-2" in text
    data = json.loads(answer.to_json())
    assert [row["options"] for row in data["plans"]] == [plan.options for plan in answer.plans]


@pytest.mark.exhaustive
def test_the_largest_batch_of_the_first_plan_fits_and_one_more_does_not():
    asked = {"gpus": 2, "optimizer": "sgd", "grad_checkpointing": True}
    source = f"torch:{__name__}:batched"
    answer = gs.fit(source, memory=4 * 2**30, **asked)
    best = answer.plans[0]
    room = 4 * 2**30 - answer.context_bytes[1] - sum(one.most for one in answer.unknown)
    held = [
        max(step.reserved_peak_bytes or 0 for step in (report.first, report.steady))
        for more in (0, 1)
        for report in [gs.peak(source, batch=best.max_batch + more, allocator="torch", **asked, **best.training)]
    ]
    assert held[0] <= room < held[1]


def batched(batch: int = 2):
    return _Wide(), torch.zeros(batch, 1024, 1024)


class _Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(_Layer() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class _Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, 1024)

    def forward(self, x):
        return self.down(self.up(x).relu())


def test_a_model_that_wraps_itself_is_asked_about_as_it_is():
    make, size = sharded(Net), 2
    made = {}

    def model():
        made.update(make())
        return made["model"]

    answer = gs.fit(model, tokens, gpus=size, memory="8GiB", target="cpu", optimizer="sgd")
    assert answer.plans == ()
    assert answer.fits


def test_a_link_and_plans_are_for_several_gpus():
    with pytest.raises(UsageError, match="a link joins several GPUs"):
        gs.fit("lenet5", memory="1GiB", link="pcie")
    with pytest.raises(UsageError, match="without --strategy"):
        gs.fit(small, tokens, gpus=2, memory="1GiB", strategy="sqrt")


def test_deepspeeds_rule_says_what_its_documentation_shows_for_t5_3b():
    """docs/code-docs/source/memory.rst: 2851 M parameters on eight GPUs: 15.93GB and 6.10GB, which are GiB."""
    assert stage_2(2_851_000_000, 8) / 2**30 == pytest.approx(15.93, abs=0.01)
    assert stage_3(2_851_000_000, 32_000_000, 8) / 2**30 == pytest.approx(6.10, abs=0.02)


def test_times_are_those_of_the_graph(answer):
    plan = next(plan for plan in answer.plans if plan.options == "--ddp")
    step = gs.sources.source_of(small, tokens).steps(
        Training(gpus=2, rank=0, ddp=True, optimizer="momentum", grad_checkpointing=True)
    )
    expected = step_seconds(step.steady, DEVICES["a100-80g"], answer.link)
    assert (plan.compute_seconds, plan.communication_seconds, plan.step_seconds) == expected
