"""Recipes of Hugging Face configs: adapters, quantized weights, checkpointing, inference with a cache."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")

import graphsim as gs
from graphsim.sources import source_of
from graphsim.step.training import Training

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


@pytest.fixture
def llama(tmp_path):
    def source(training, **changes):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(LLAMA | changes))
        return source_of(f"hf:{file}", batch=2, seq=8).steps(training).steady

    return source


def weights(step):
    return [t for t in step.tensors.values() if t.role is gs.Role.PARAMETER and not t.storage]


def test_adapters_of_a_7b_llama_are_as_many_as_is_published(llama):
    """QLoRA's and Alpaca-LoRA's logs: rank 16 on all linear layers of a 7B Llama trains 39,976,960 parameters."""
    wide = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 1, "num_attention_heads": 32}
    training = Training(lora=16, quant="nf4", precision="bf16", optimizer="sgd")
    step = llama(training, **wide, num_key_value_heads=32)
    adapters = [t for t in weights(step) if ".lora_" in t.name]
    assert 32 * sum(t.size for t in adapters) == 39_976_960
    assert {t.dtype for t in adapters} == {"float32"}
    packed = sum(t.nbytes for t in weights(step) if t.name.endswith("base_layer.weight"))
    assert packed == (4 * 4096**2 + 3 * 4096 * 11008) // 2
    assert {t.dtype for t in weights(step) if "embed" in t.name or "lm_head" in t.name} == {"bfloat16"}
    assert not [t for t in step.tensors.values() if t.role is gs.Role.GRADIENT and ".lora_" not in t.name]


def test_a_cache_holds_keys_and_values_of_each_layer_and_token(llama):
    step = llama(Training(mode="inference", kv_cache=100, target="cpu"), dtype="float32")
    cache = [t for t in step.tensors.values() if t.name.startswith(("cache.", "past_key_values."))]
    assert sum(t.nbytes for t in cache if not t.storage) == 2 * 2 * 2 * 100 * 64 * 4  # kinds, layers, batch, tokens
    grown = [t for op in step.ops if op.kind == "cat" for t in map(step.tensors.__getitem__, op.outputs)]
    assert sum(t.nbytes for t in grown if t.shape[-2] == 108) == 2 * 2 * 2 * 108 * 64 * 4


def test_inference_drops_the_loss(llama):
    kinds = {op.kind for op in llama(Training(mode="inference", target="cpu")).ops}
    assert "_log_softmax" not in kinds
    assert not any("backward" in kind for kind in kinds)
    evaluated = llama(Training(mode="evaluation", target="cpu")).ops
    assert "_log_softmax" in {op.kind for op in evaluated}


def test_the_models_own_checkpointing_runs_each_layer_again(llama):
    step = llama(Training(grad_checkpointing=True, optimizer="sgd", target="cpu"))
    again = {op.layer for op in step.ops if op.phase is gs.Phase.RECOMPUTE}
    assert {f"model.layers.{n}.mlp.down_proj" for n in range(2)} <= again


def test_weights_are_loaded_in_the_dtype_that_is_asked_for(llama):
    step = llama(Training(precision="bf16", optimizer="sgd", target="cpu"), dtype="float32")
    assert {t.dtype for t in weights(step)} == {"bfloat16"}
