"""Specs against captures of the same model from plain PyTorch or transformers: two ways to the same step.

    python bench/spec_capture.py                  # every spec with a counterpart, steady step with AdamW
    python bench/spec_capture.py --only gpt2

For each target (cpu; cuda; cuda under autocast to bf16) prints the steady peak of the spec and the difference
of the captured one. Exits with 1 if one is off by more than 0.5 %. Needs the extra 'test'.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "sources"), str(TESTS / "step" / "ops")]

BAR = 0.005
SETTINGS = (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "amp-bf16"))


class Twin(NamedTuple):
    """A spec's params, and the same model in PyTorch: its factory, its batch, its loss."""

    params: dict[str, Any]
    model: Callable[[], Any]
    batch: Callable[[], Any]
    loss: Callable[[Any, Any], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    print("| spec | params | " + " | ".join(f"{target} {precision}" for target, precision in SETTINGS) + " |")
    print("|---|---|" + "---:|" * len(SETTINGS))
    worst = 0.0
    for name, twin in twins():
        if options.only in ("", name):
            cells = []
            for target, precision in SETTINGS:
                spec, captured = peaks(name, twin, target, precision)
                worst = max(worst, abs(captured / spec - 1))
                cells.append(f"{spec:,} {captured / spec - 1:+.2%}")
            shown = ", ".join(f"{key} {value}" for key, value in twin.params.items())
            print(f"| {name} | {shown} | " + " | ".join(cells) + " |", flush=True)
    print(f"\nworst: {worst:.2%}")
    return int(worst > BAR)


def peaks(name: str, twin: Twin, target: str, precision: str) -> tuple[int, int]:
    """Return the steady peak of the spec and of the captured twin, in bytes."""
    import torch

    import graphsim as gs
    from graphsim.core.devices import device_of
    from graphsim.sources.torch.capture import capture

    options = {"optimizer": "adamw", "target": target, "precision": precision}
    spec = gs.simulate(gs.training_step(gs.load(name, **twin.params), **options)).peak

    def step(model: Any, batch: Any, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(target, dtype=torch.bfloat16) if precision != "fp32" else nullcontext():
            loss = twin.loss(model, batch)
        loss.backward()
        optimizer.step()

    graph = capture(
        twin.model,
        twin.batch,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        loss=None,
        step=step,
        device=device_of("", "cuda") if target == "cuda" else None,
    ).graph()
    return spec, gs.simulate(graph).peak


def twins() -> Iterator[tuple[str, Twin]]:
    """Yield each shipped spec that has a counterpart."""
    import torch
    import transformers as hf
    from test_specs_cnn import UNet, densenet121, efficientnet_b0, mobilenet_v2, resnet18
    from torch import nn
    from torch_truth import resnet50, vgg16

    def images(batch: int, size: int, *labels: int) -> Callable[[], Any]:
        return lambda: (torch.randn(batch, 3, size, size), torch.randint(0, 2, (batch, *labels)))

    def classify(model: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    cnns = {
        "vgg16": vgg16,
        "resnet18": resnet18,
        "resnet50": resnet50,
        "mobilenet_v2": mobilenet_v2,
        "densenet121": densenet121,
        "efficientnet_b0": efficientnet_b0,
    }
    for name, model in cnns.items():
        yield name, Twin({"batch": 8}, model, images(8, 224), classify)
    yield "unet", Twin({"batch": 2, "size": 256}, UNet, images(2, 256, 256, 256), classify)

    def tokens(batch: int, seq: int, **more: int) -> Callable[[], Any]:
        def make() -> dict[str, Any]:
            ids, labels = torch.randint(0, 30000, (2, batch, seq))
            mask = torch.ones(batch, seq, dtype=torch.int64)
            return {"input_ids": ids, "labels": labels[:, : more.get("labels", seq)].clone(), "attention_mask": mask}

        return make

    def language(model: Any, batch: Any) -> Any:
        return model(**batch).loss

    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    texts: dict[str, tuple[dict[str, Any], Callable[[], Any], dict[str, int]]] = {
        "gpt2": ({}, lambda: hf.GPT2LMHeadModel(hf.GPT2Config(use_cache=False, loss_type="ForCausalLM")), {}),
        "bert_base": ({}, lambda: hf.BertForMaskedLM(hf.BertConfig()), {}),
        "bert_large": ({}, lambda: hf.BertForMaskedLM(hf.BertConfig(**large)), {}),
        "llama3_8b": ({"layers": 2}, lambda: hf.LlamaForCausalLM(_llama(hf, 2)), {}),
        "mixtral_8x7b": ({"layers": 1}, lambda: hf.MixtralForCausalLM(_mixtral(hf, 1)), {}),
        "t5_small": (
            {"target_seq": 64},
            lambda: hf.T5ForConditionalGeneration(
                hf.T5Config(use_cache=False, decoder_start_token_id=0, pad_token_id=0)
            ),
            {"labels": 64},
        ),
    }
    for name, (params, model, more) in texts.items():
        yield name, Twin({"batch": 4, "seq": 256, **params}, model, tokens(4, 256, **more), language)

    def pictures() -> dict[str, Any]:
        return {"pixel_values": torch.randn(8, 3, 224, 224), "labels": torch.randint(0, 1000, (8,))}

    yield (
        "vit_b16",
        Twin({"batch": 8}, lambda: hf.ViTForImageClassification(hf.ViTConfig(num_labels=1000)), pictures, language),
    )


def _llama(hf: Any, layers: int) -> Any:
    return hf.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        rope_theta=500000.0,
        use_cache=False,
    )


def _mixtral(hf: Any, layers: int) -> Any:
    return hf.MixtralConfig(num_hidden_layers=layers, use_cache=False)


if __name__ == "__main__":
    sys.exit(main())
