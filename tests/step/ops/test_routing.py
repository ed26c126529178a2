"""Routed experts against the block of transformers, with whatever routing chance brings."""

from __future__ import annotations

import pytest
from oracle import assert_close, measure

import graphsim as gs
from graphsim.errors import SpecError
from graphsim.sources.spec import parse_spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
nn = torch.nn

BATCH, STEPS, WIDTH, CLASSES = 3, 16, 32, 12

SPEC = """
[inputs]
x = {{ shape = [3, 16, 32] }}
y = {{ shape = [3, 16], dtype = "int64" }}
[model]
layers = [
  {{ op = "linear", out = 32 }},
  {{ op = "moe", experts = {experts}, top_k = {top_k}, hidden = {hidden}, name = "mlp" }},
  {{ op = "linear", out = 12 }},
  {{ op = "cross_entropy", with = "y" }},
]
"""


class Net(nn.Module):
    def __init__(self, experts: int, top_k: int, hidden: int) -> None:
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        super().__init__()
        config = transformers.MixtralConfig(
            hidden_size=WIDTH, intermediate_size=hidden, num_local_experts=experts, num_experts_per_tok=top_k
        )
        config._experts_implementation = "grouped_mm"  # what a model class picks by default
        self.into, self.mlp, self.out = (
            nn.Linear(WIDTH, WIDTH),
            MixtralSparseMoeBlock(config),
            nn.Linear(WIDTH, CLASSES),
        )
        for p in self.mlp.parameters():
            nn.init.normal_(p, std=0.1)

    def forward(self, x, y):
        return nn.functional.cross_entropy(self.out(self.mlp(self.into(x))).flatten(0, 1), y.flatten())


@pytest.mark.parametrize(("experts", "top_k", "hidden"), [(4, 2, 48), (8, 1, 20), (5, 5, 16), (1, 1, 32)])
def test_routed_experts_allocate_what_transformers_allocates(experts, top_k, hidden):
    net = Net(experts, top_k, hidden)
    x, y = torch.randn(BATCH, STEPS, WIDTH), torch.randint(0, CLASSES, (BATCH, STEPS))
    assert_close(lambda: net(x, y), SPEC.format(experts=experts, top_k=top_k, hidden=hidden), within=64)


def test_memory_does_not_depend_on_where_tokens_go():
    net = Net(4, 2, 48)
    x, y = torch.randn(BATCH, STEPS, WIDTH), torch.randint(0, CLASSES, (BATCH, STEPS))
    net(x, y).backward()
    net.zero_grad()
    spread = measure(lambda: net(x, y))
    net.zero_grad()
    with torch.no_grad():
        net.mlp.gate.weight.zero_()  # all tokens to the same experts
    assert measure(lambda: net(x, y)) == spread


def test_an_experts_weights_are_parts_of_grouped_parameters():
    graph = parse_spec(SPEC.format(experts=4, top_k=2, hidden=48))
    shapes = {t.name: t.shape for t in graph.tensors.values() if t.name.startswith("mlp.")}
    assert shapes == {"mlp.gate": (4, 32), "mlp.gate_up": (4, 96, 32), "mlp.down": (4, 32, 48)}


def test_work_counts_the_chosen_experts_only():
    few, all_ = (
        sum(
            op.flops
            for op in gs.training_step(parse_spec(SPEC.format(experts=8, top_k=k, hidden=48))).ops
            if op.kind == "grouped_mm"
        )
        for k in (2, 8)
    )
    assert all_ == 4 * few


def test_more_choices_than_experts_are_refused():
    with pytest.raises(SpecError, match="top_k = 3 is more than the 2 experts"):
        parse_spec(SPEC.format(experts=2, top_k=3, hidden=8))
