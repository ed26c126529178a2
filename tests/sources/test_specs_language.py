"""Language models: parameter counts at full size, and memory at small size against the real models."""

from __future__ import annotations

import pytest
from oracle import assert_close
from torch_memory import measure

import graphsim as gs
from graphsim.sources.spec import load_spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
nn = torch.nn

BATCH, SEQ, VOCAB = 2, 16, 128


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lstm_lm", 33278 * 200 + 2 * 4 * (200 * 200 * 2 + 400) + 200 * 33278 + 33278),
        ("t5_small", 60_506_624),
        ("llama3_8b", 8_030_261_248),
        ("mixtral_8x7b", 46_702_792_704),
    ],
)
def test_the_full_model_has_as_many_parameters_as_published(name, parameters):
    tensors = load_spec(name).tensors.values()
    assert sum(t.size for t in tensors if t.role is gs.Role.PARAMETER) == parameters


def causal_model(name: str, attention: str, dropout: float) -> nn.Module:
    """Two layers, width 64, four query heads and two key heads; all experts behind one grouped product."""
    kind = transformers.LlamaConfig if name == "llama3_8b" else transformers.MixtralConfig
    extra = {} if name == "llama3_8b" else {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = kind(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        attention_dropout=dropout,
        use_cache=False,
        **extra,
    )
    config._attn_implementation = attention
    model = transformers.LlamaForCausalLM if name == "llama3_8b" else transformers.MixtralForCausalLM
    return model(config).train()


def batch() -> dict[str, torch.Tensor]:
    ids, labels = torch.randint(0, VOCAB, (2, BATCH, SEQ))
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones(BATCH, SEQ, dtype=torch.int64)}


@pytest.mark.parametrize(("attention", "dropout"), [("sdpa", 0.0), ("sdpa", 0.1), ("eager", 0.0), ("eager", 0.1)])
@pytest.mark.parametrize("name", ["llama3_8b", "mixtral_8x7b"])
def test_a_small_decoder_allocates_what_transformers_allocates(name, attention, dropout):
    """Routing is left to chance: it moves no byte. 600 bytes: the labels, which the loss pads and shifts."""
    net, inputs = causal_model(name, attention, dropout), batch()
    sizes = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "hidden": 96, "vocab": VOCAB, "seq": SEQ}
    experts = {"experts": 4, "top_k": 2} if name == "mixtral_8x7b" else {}
    graph = load_spec(name, batch=BATCH, attention=attention, dropout=dropout, **sizes, **experts)
    assert_close(lambda: net(**inputs).loss, graph, within=640)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("target_seq", [16, 5])
def test_a_small_t5_allocates_what_transformers_allocates(dropout, target_seq):
    """The position bias is learned, so attention is composed; over the encoder it is fused without dropout."""
    config = transformers.T5Config(
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        vocab_size=VOCAB,
        dropout_rate=dropout,
        use_cache=False,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    net, inputs = transformers.T5ForConditionalGeneration(config).train(), batch()
    inputs["labels"] = inputs["labels"][:, :target_seq].contiguous()
    sizes = {"layers": 2, "width": 64, "heads": 4, "head_width": 16, "hidden": 96, "vocab": VOCAB, "seq": SEQ}
    graph = load_spec("t5_small", batch=BATCH, target_seq=target_seq, dropout=dropout, **sizes)
    assert_close(lambda: net(**inputs).loss, graph, within=64)


class WordModel(nn.Module):
    """RNNModel of PyTorch's examples/word_language_model."""

    def __init__(self, vocab: int, width: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab, width)
        self.rnn = nn.LSTM(width, hidden, layers, dropout=dropout)
        self.decoder = nn.Linear(hidden, vocab)

    def forward(self, tokens, hidden):
        embedded = self.drop(self.encoder(tokens))
        output, hidden = self.rnn(embedded, hidden)
        decoded = self.decoder(self.drop(output)).view(-1, self.decoder.out_features)
        return nn.functional.log_softmax(decoded, dim=1), hidden


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_small_lstm_language_model_allocates_what_torch_allocates(dropout):
    steps, size, width, hidden, layers = 7, 4, 24, 40, 2

    def run() -> None:
        net = WordModel(VOCAB, width, hidden, layers, dropout)
        tokens, targets = torch.randint(0, VOCAB, (2, steps, size))
        state = torch.zeros(layers, size, hidden), torch.zeros(layers, size, hidden)

        def forward():
            scores, carried = net(tokens, state)
            return nn.functional.nll_loss(scores, targets.view(-1)), carried

        for step in (1, 2):
            net.zero_grad()
            with torch.profiler.record_function(f"##forward {step}"):
                loss, carried = forward()
            with torch.profiler.record_function(f"##backward {step}"):
                loss.backward()
            del carried, loss

    measured = measure(run)
    graph = load_spec(
        "lstm_lm", batch=size, seq=steps, layers=layers, width=width, hidden=hidden, vocab=VOCAB, dropout=dropout
    )
    predicted = gs.simulate(gs.training_step(graph, optimizer="sgd", target="cpu"))
    assert predicted.phase_peaks()["forward"] == pytest.approx(measured["forward 2"].peak, abs=64)
    assert predicted.phase_end_bytes(gs.Phase.FORWARD) == pytest.approx(measured["forward 2"].end, abs=64)
    assert predicted.phase_peaks()["backward"] == pytest.approx(measured["backward 2"].peak, abs=64)
    assert predicted.phase_end_bytes(gs.Phase.BACKWARD) == pytest.approx(measured["backward 2"].end, abs=64)


def test_a_batch_holds_what_users_hand_to_the_model():
    inputs = {
        name: {t.name: t.shape for t in load_spec(name).tensors.values() if t.role is gs.Role.INPUT and not t.storage}
        for name in ("lstm_lm", "t5_small", "llama3_8b", "mixtral_8x7b")
    }
    assert inputs["lstm_lm"] == {"tokens": (35, 20), "targets": (35, 20), "h0": (2, 20, 200), "c0": (2, 20, 200)}
    assert inputs["t5_small"] == {"input_ids": (8, 512), "attention_mask": (8, 512), "labels": (8, 128)}
    assert inputs["llama3_8b"] == dict.fromkeys(("input_ids", "labels", "attention_mask"), (1, 2048))
    assert inputs["mixtral_8x7b"] == inputs["llama3_8b"]
