"""Shrunk transformers of many kinds: name -> function that returns (model, batch) with real tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from architectures import Case
from torch import nn

TRANSFORMERS: dict[str, Callable[[], Case]] = {}


def tokens(vocabulary: int = 96, batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, vocabulary, (batch, length))


def text(model: str, **config: Any) -> Callable[[], Case]:
    """A language model: ids, mask and labels."""

    def build() -> Case:
        ids = tokens()
        return _build(model, vocab_size=96, **config), {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": tokens(),
        }

    return build


def image(model: str, size: int = 32, **config: Any) -> Callable[[], Case]:
    def build() -> Case:
        batch = {"pixel_values": torch.randn(2, 3, size, size), "labels": torch.tensor([0, 1])}
        return _build(model, num_labels=5, **config), batch

    return build


def _build(model: str, **config: Any) -> nn.Module:
    import transformers

    kind = getattr(transformers, model)
    return kind(kind.config_class(**config))


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DECODER = {**SMALL, "use_cache": False, "max_position_embeddings": 64}
GROUPED = {**DECODER, "num_key_value_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQUENCE = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "use_cache": False,
    **SPECIAL,
    "decoder_start_token_id": 2,
}

TRANSFORMERS |= {
    "bert": text("BertForMaskedLM", **SMALL),
    "roberta": text("RobertaForMaskedLM", **SMALL),
    "albert": text("AlbertForMaskedLM", embedding_size=16, **SMALL),
    "distilbert": text("DistilBertForMaskedLM", dim=32, n_layers=2, n_heads=4, hidden_dim=48),
    "electra": text("ElectraForMaskedLM", embedding_size=16, **SMALL),
    "deberta_v2": text("DebertaV2ForMaskedLM", relative_attention=True, pos_att_type=["p2c", "c2p"], **SMALL),
    "modernbert": text("ModernBertForMaskedLM", **SMALL, **SPECIAL, cls_token_id=1, sep_token_id=2),
    "gpt2": text("GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, n_positions=64, use_cache=False),
    "gpt2_eager": text("GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, use_cache=False, attn_implementation="eager"),
    "llama": text("LlamaForCausalLM", **GROUPED),
    "mistral": text("MistralForCausalLM", sliding_window=8, **GROUPED),
    "qwen2": text("Qwen2ForCausalLM", **GROUPED),
    "qwen3": text("Qwen3ForCausalLM", head_dim=8, **GROUPED),
    "gemma2": text("Gemma2ForCausalLM", head_dim=8, sliding_window=8, **GROUPED),
    "phi3": text("Phi3ForCausalLM", **GROUPED, **SPECIAL),
    "gpt_neox": text("GPTNeoXForCausalLM", **DECODER),
    "opt": text(
        "OPTForCausalLM", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, use_cache=False
    ),
    "bloom": text("BloomForCausalLM", hidden_size=32, n_layer=2, n_head=4, use_cache=False),
    "falcon": text("FalconForCausalLM", **{**DECODER, "intermediate_size": None}),
    "mixtral": text("MixtralForCausalLM", num_local_experts=4, **GROUPED),
    "qwen2_moe": text(
        "Qwen2MoeForCausalLM", num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16, **GROUPED
    ),
    "mamba": text("MambaForCausalLM", hidden_size=32, num_hidden_layers=2, state_size=4, use_cache=False),
    "mamba2": text(
        "Mamba2ForCausalLM",
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=4,
        use_cache=False,
    ),
    "rwkv": text("RwkvForCausalLM", hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, use_cache=False),
    "t5": text(
        "T5ForConditionalGeneration",
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        use_cache=False,
        decoder_start_token_id=0,
    ),
    "bart": text("BartForConditionalGeneration", **SEQUENCE),
    "marian": text("MarianMTModel", **SEQUENCE),
    "pegasus": text("PegasusForConditionalGeneration", **SEQUENCE),
    "vit": image("ViTForImageClassification", image_size=32, patch_size=8, **SMALL),
    "deit": image("DeiTForImageClassification", image_size=32, patch_size=8, **SMALL),
    "beit": image("BeitForImageClassification", image_size=32, patch_size=8, **SMALL),
    "swin": image(
        "SwinForImageClassification",
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    "convnext": image("ConvNextForImageClassification", num_stages=2, hidden_sizes=[16, 32], depths=[1, 2]),
    "resnet": image("ResNetForImageClassification", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2]),
    "mobilenet_v2": image("MobileNetV2ForImageClassification", depth_multiplier=0.25),
    "segformer": image(
        "SegformerForImageClassification",
        hidden_sizes=[16, 16, 32, 32],
        num_attention_heads=[1, 1, 2, 2],
        depths=[1, 1, 1, 1],
    ),
}


def transformer(build: Callable[[], Case]) -> Callable[[], Case]:
    TRANSFORMERS[build.__name__] = build
    return build


@transformer
def whisper() -> Case:
    model = _build(
        "WhisperForConditionalGeneration", vocab_size=96, num_mel_bins=8, max_source_positions=16, **SEQUENCE
    )
    return model, {"input_features": torch.randn(2, 8, 32), "labels": tokens()}


@transformer
def wav2vec2() -> Case:
    model = _build(
        "Wav2Vec2ForCTC",
        vocab_size=30,
        conv_dim=[16, 16],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
        layerdrop=0.0,
        **SMALL,
    )
    return model, {"input_values": torch.randn(2, 400), "labels": torch.randint(1, 30, (2, 5))}


@transformer
def audio_spectrogram() -> Case:
    model = _build("ASTForAudioClassification", max_length=32, num_mel_bins=16, patch_size=8, num_labels=5, **SMALL)
    return model, {"input_values": torch.randn(2, 32, 16), "labels": torch.tensor([0, 1])}


@transformer
def clip() -> Case:
    import transformers

    part = {**SMALL, "projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config={**part, "vocab_size": 96, **SPECIAL}, vision_config={**part, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    batch = {"input_ids": tokens(), "pixel_values": torch.randn(2, 3, 32, 32), "return_loss": True}
    return transformers.CLIPModel(config), batch
