"""LSTM and GRU: oneDNN's primitive and the native cell, against torch's own modules."""

from __future__ import annotations

import pytest
from oracle import assert_close

import graphsim as gs
from graphsim.errors import SpecError
from graphsim.sources.spec import parse_spec

torch = pytest.importorskip("torch")
nn = torch.nn

STEPS, BATCH, WIDTH, CLASSES = 5, 6, 16, 12


def spec(kind: str, order: tuple[int, int], states: tuple[str, ...] = (), **attributes: object) -> str:
    if states:
        attributes["with"] = list(states)
    given = "".join(f"{name} = {{ shape = [2, {BATCH}, 8] }}\n" for name in states)
    layer = "".join(f", {key} = {str(value).lower()}" for key, value in attributes.items())
    return f"""
[inputs]
x = {{ shape = [{order[0]}, {order[1]}, {WIDTH}] }}
y = {{ shape = [{order[0]}, {order[1]}], dtype = "int64" }}
{given}[model]
layers = [
  {{ op = "linear", out = {WIDTH} }},
  {{ op = "{kind}", name = "rnn"{layer} }},
  {{ op = "linear", out = {CLASSES} }},
  {{ op = "cross_entropy", with = "y" }},
]
"""


class Tagger(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: str, hidden: int, layers: int = 1, **options: object) -> None:
        super().__init__()
        self.into = nn.Linear(WIDTH, WIDTH)
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](WIDTH, hidden, layers, **options)
        self.out = nn.Linear(hidden * (2 if self.rnn.bidirectional else 1), CLASSES)

    def forward(self, x, y):
        sequence, _ = self.rnn(self.into(x))
        return nn.functional.cross_entropy(self.out(sequence).flatten(0, 1), y.flatten())


CASES = {
    "one layer": {"hidden": 32},
    "a width that is padded": {"hidden": 30},
    "two layers with dropout": {"hidden": 32, "layers": 2, "dropout": 0.5},
    "both directions": {"hidden": 24, "bidirectional": True},
    "all at once": {"hidden": 20, "layers": 3, "dropout": 0.2, "bidirectional": True, "batch_first": True},
    "batch first": {"hidden": 32, "batch_first": True},
    "no bias": {"hidden": 32, "bias": False},
}


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_recurrent_layer_allocates_what_torch_allocates(kind, options):
    net = Tagger(kind, **options)
    order = (BATCH, STEPS) if options.get("batch_first") else (STEPS, BATCH)
    x, y = torch.randn(*order, WIDTH), torch.randint(0, CLASSES, order)
    assert_close(lambda: net(x, y), spec(kind, order, **options), within=16)


@pytest.mark.parametrize(("batch", "inner", "hidden"), [(130, 16, 16), (3, 256, 64), (2, 40, 520), (1, 16, 16)])
def test_the_scratch_of_onednns_lstm_follows_its_shape(batch, inner, hidden):
    """Batches from 128, leading dimensions that are padded, wide layers: each takes another path."""
    net, x = nn.LSTM(inner, hidden), torch.randn(STEPS, batch, inner)
    graph = f"""
[inputs]
x = {{ shape = [{STEPS}, {batch}, {inner}] }}
y = {{ shape = [{STEPS}, {batch}, {hidden}] }}
[model]
layers = [{{ op = "lstm", hidden = {hidden} }}, {{ op = "mse", with = "y" }}]
"""
    y = torch.randn(STEPS, batch, hidden)
    assert_close(lambda: nn.functional.mse_loss(net(x)[0], y), graph, within=16)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_given_initial_states_are_inputs_and_final_states_are_outputs(kind):
    names = ("h0", "c0") if kind == "lstm" else ("h0",)
    text = spec(kind, (STEPS, BATCH), names, hidden=8, layers=2)
    net = Tagger(kind, 8, 2)
    x, y = torch.randn(STEPS, BATCH, WIDTH), torch.randint(0, CLASSES, (STEPS, BATCH))
    given = [torch.zeros(2, BATCH, 8) for _ in names]

    def forward():
        sequence, _ = net.rnn(net.into(x), tuple(given) if kind == "lstm" else given[0])
        return nn.functional.cross_entropy(net.out(sequence).flatten(0, 1), y.flatten())

    assert_close(forward, text, within=16)
    finals = [t.shape for t in parse_spec(text).tensors.values() if t.name.startswith("rnn:")]
    assert finals == [(2, BATCH, 8)] * len(names)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_parameters_are_torchs_own(kind, options):
    graph = parse_spec(spec(kind, (BATCH, STEPS), **options))
    ours = {t.name: t.shape for t in graph.tensors.values() if t.name.startswith("rnn.")}
    theirs = {f"rnn.{name}": tuple(p.shape) for name, p in Tagger(kind, **options).rnn.named_parameters()}
    assert ours == theirs
    assert list(ours) == list(theirs)


def test_on_cuda_the_gradients_are_parts_of_one_buffer():
    step = gs.training_step(parse_spec(spec("lstm", (STEPS, BATCH), hidden=8)), optimizer="sgd", target="cuda")
    storages = {step.tensors[f"rnn.{name}.grad"].base for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")}
    assert len(storages) == 1
    assert step.tensors[storages.pop()].size == 4 * 8 * (WIDTH + 8 + 2)


def test_inference_keeps_nothing_for_backward():
    text = spec("lstm", (STEPS, BATCH), hidden=8, layers=2)
    train, infer = (
        gs.simulate(gs.training_step(parse_spec(text), optimizer="sgd", mode=mode, target="cpu"))
        for mode in ("train", "inference")
    )
    assert infer.phase_end_bytes(gs.Phase.FORWARD) < train.phase_end_bytes(gs.Phase.FORWARD)
    assert not [op for op in infer.graph.ops if len(op.outputs) > 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[5, 6, 16]", "[5, 16]"), "steps, batch, features"),
        (("hidden = 8", "hidden = 0"), "'hidden' must be at least 1"),
        (("hidden = 8", "hidden = 8, layers = 257"), "'layers' must be at most 256"),
        (("hidden = 8", 'hidden = 8, with = "y"'), "with 2 initial states"),
        (("hidden = 8", 'hidden = 8, with = ["y", "y"]'), r"must have shape \[1, 6, 8\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    text = spec("lstm", (STEPS, BATCH), hidden=8).replace(*change)
    with pytest.raises(SpecError, match=message):
        parse_spec(text)
