"""GPT-2, BERT and ViT: parameter counts at full size, and memory at small size against transformers."""

from __future__ import annotations

import pytest
from oracle import assert_close

import graphsim as gs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BATCH, SEQ, VOCAB = 2, 24, 96
SIZES = {"layers": 2, "width": 64, "heads": 4}
SCALARS = 16
"""Bytes of Python numbers that become tensors within a kernel."""
KERNELS = [("sdpa", 0.0), ("sdpa", 0.1), ("eager", 0.0), ("eager", 0.1)]


@pytest.mark.parametrize(
    ("name", "sizes", "parameters"),
    [
        ("gpt2", {}, 124_439_808),
        ("gpt2", {"layers": 24, "width": 1024, "heads": 16}, 354_823_168),
        ("gpt2", {"layers": 36, "width": 1280, "heads": 20}, 774_030_080),
        ("gpt2", {"layers": 48, "width": 1600, "heads": 25}, 1_557_611_200),
        ("bert_base", {}, 109_514_298),
        ("bert_large", {}, 335_174_458),
        ("vit_b16", {}, 86_567_656),
    ],
)
def test_the_full_model_has_as_many_parameters_as_published(name, sizes, parameters):
    tensors = gs.load(name, **sizes).tensors.values()
    assert sum(t.size for t in tensors if t.role is gs.Role.PARAMETER) == parameters


def tokens() -> dict[str, torch.Tensor]:
    ids, labels = torch.randint(0, VOCAB, (2, BATCH, SEQ))
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones(BATCH, SEQ, dtype=torch.int64)}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("attention", "dropout"), KERNELS)
def test_a_small_gpt2_allocates_what_transformers_allocates(attention, dropout, batch):
    config = transformers.GPT2Config(
        n_layer=2, n_embd=64, n_head=4, vocab_size=VOCAB, use_cache=False, loss_type="ForCausalLM",
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    config._attn_implementation = attention
    net = transformers.GPT2LMHeadModel(config).train()
    inputs = {name: values[:batch] for name, values in tokens().items()}
    graph = gs.load("gpt2", batch=batch, seq=SEQ, vocab=VOCAB, attention=attention, dropout=dropout, **SIZES)
    assert_close(lambda: net(**inputs).loss, graph, within=SCALARS)


@pytest.mark.parametrize(("attention", "dropout"), KERNELS)
def test_a_small_bert_allocates_what_transformers_allocates(attention, dropout):
    config = transformers.BertConfig(
        num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=256, vocab_size=VOCAB,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    config._attn_implementation = attention
    net, inputs = transformers.BertForMaskedLM(config).train(), tokens()
    graph = gs.load("bert_base", batch=BATCH, seq=SEQ, vocab=VOCAB, attention=attention, dropout=dropout, **SIZES)
    assert_close(lambda: net(**inputs).loss, graph, within=SCALARS)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("attention", "dropout"), KERNELS)
def test_a_small_vit_allocates_what_transformers_allocates(attention, dropout, batch):
    config = transformers.ViTConfig(
        num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=256, image_size=64, num_labels=10,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    config._attn_implementation = attention
    net = transformers.ViTForImageClassification(config).train()
    pixels, labels = torch.randn(batch, 3, 64, 64), torch.randint(0, 10, (batch,))
    graph = gs.load("vit_b16", batch=batch, size=64, classes=10, attention=attention, dropout=dropout, **SIZES)
    assert_close(
        lambda: net(pixel_values=pixels, labels=labels).loss, graph, within=SCALARS + 256
    )  # the patch bias's gradient
