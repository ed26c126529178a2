"""A deep model told from three of its layers has the very graph that a capture of all its layers has."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from architectures_hf import TRANSFORMERS  # noqa: E402
from exhaustive import only  # noqa: E402

from graphsim.sources.hf import layers  # noqa: E402
from graphsim.sources.source import source_of  # noqa: E402
from graphsim.step.training import Training  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

DEPTH = 6
"""Layers: few, to be captured all; told from three all the same."""

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "num_hidden_layers": DEPTH,
}


@pytest.fixture
def captures(monkeypatch):
    """List by how many layers captures are deepened, and forget what held before."""
    found = []
    real = layers.deepened

    def deepened(recording, stack, more):
        found.append(more)
        return real(recording, stack, more)

    monkeypatch.setattr(layers, "_TOLD", {})
    monkeypatch.setattr(layers, "WORTH", DEPTH)
    monkeypatch.setattr(layers, "deepened", deepened)
    return found


def steps(folder, config, training, batch=1):
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return source_of(f"hf:{folder / 'config.json'}", batch=batch, seq=4).steps(training)


def equal(one, other):
    return all(
        first.ops == second.ops
        and first.tensors == second.tensors
        and set(first.outputs) == set(second.outputs)
        and first.attributes == second.attributes
        for first, second in zip(one, other, strict=True)
    )


TRAININGS = {
    "lora": Training(lora=4, quant="nf4", grad_checkpointing=True, precision="bf16", target="cuda"),
    "adam": Training(optimizer="adam", target="cuda"),
    "lora_kept": Training(lora=4, target="cuda"),
    "adam8bit": Training(optimizer="adam8bit", target="cuda"),
    "autocast": Training(precision="amp-fp16", target="cuda"),
    "cpu": Training(),
    "inference": Training(mode="inference"),
    "fsdp": Training(gpus=4, fsdp=True, rank=1, target="cuda"),
    "fsdp_tp": Training(gpus=4, fsdp=True, tp=2, rank=0),
}


@pytest.mark.parametrize("training", only(("lora",), TRAININGS))
def test_a_llama_is_told_from_three_layers(tmp_path, monkeypatch, captures, training):
    told = steps(tmp_path, LLAMA, TRAININGS[training])
    assert captures == [1, DEPTH - 3]
    monkeypatch.setattr(layers, "WORTH", DEPTH + 1)
    assert equal(told, steps(tmp_path, LLAMA, TRAININGS[training]))


def test_what_held_is_not_checked_again_at_another_batch(tmp_path, captures):
    training = Training(mode="inference")
    steps(tmp_path, LLAMA, training)
    steps(tmp_path, LLAMA, training, batch=2)
    assert captures == [1, DEPTH - 3, DEPTH - 3]


def test_a_config_that_tells_layers_apart_is_captured_whole(tmp_path, captures):
    kinds = ["sliding_attention", "full_attention"] * (DEPTH // 2)
    config = {
        **LLAMA,
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "layer_types": kinds,
        "sliding_window": 2,
        "use_sliding_window": True,
    }
    graph = steps(tmp_path, config, Training(mode="inference")).steady
    assert not captures
    assert f"model.layers.{DEPTH - 1}.mlp" in {op.layer.rpartition(".")[0] for op in graph.ops}


DECODERS_AND_ENCODERS = (
    "bert",
    "gpt2",
    "opt",
    "bloom",
    "gpt_neox",
    "falcon",
    "phi3",
    "qwen3",
    "mixtral",
    "gemma2",
    "vit",
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", DECODERS_AND_ENCODERS)
def test_other_architectures_too_have_the_graph_of_all_their_layers(tmp_path, monkeypatch, captures, name):
    model, _ = TRANSFORMERS[name]()
    config = model.config.to_dict()
    field = model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    config = {key: value for key, value in config.items() if not key.endswith("layer_types")}
    config |= {field: DEPTH, "architectures": [type(model).__name__]}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    told = source_of(f"hf:{tmp_path / 'config.json'}").steps()
    monkeypatch.setattr(layers, "WORTH", DEPTH + 1)
    assert equal(told, source_of(f"hf:{tmp_path / 'config.json'}").steps())
