"""A batch that a model of transformers can be trained on, made up from the sizes in its config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from transformers.models.auto import modeling_auto

from graphsim.errors import UsageError
from graphsim.sources.spec.expression import Value

LONGEST = 512
"""Tokens by default, if the model takes as many."""

SECOND = 16_000
"""Samples of audio by default."""


class Sizes(NamedTuple):
    """What the config leaves open."""

    batch: int = 1
    seq: int | None = None
    image_size: int | None = None


def sizes_of(parameters: Mapping[str, Value], path: str) -> tuple[Sizes, dict[str, Value]]:
    """Split *parameters* into the sizes of the batch and changes of the config.

    Raises:
        UsageError: a size is no positive integer.
    """
    sizes: dict[str, int] = {}
    for name, value in parameters.items():
        if name in Sizes._fields:
            if type(value) is not int or not 1 <= value <= 2**31:
                raise UsageError(f"{path}: '{name}' must be a positive integer, not {value!r:.60}")
            sizes[name] = value
    return Sizes(**sizes), {name: value for name, value in parameters.items() if name not in sizes}


def make_batch(kind: Any, config: Any, sizes: Sizes, *, labels: bool = True) -> dict[str, Any]:
    """Return keyword arguments for a model of class *kind*: its inputs, and *labels* if it takes them.

    Token ids are all the same but for a last end-of-sequence token; a language model that may see images
    in its text gets none.
    """
    return _Batch(kind, config, sizes).make(labels=labels)


def _task(*suffixes: str) -> frozenset[str]:
    """Return the classes of the auto-model tables of these names."""
    names: set[str] = set()
    for suffix in suffixes:
        for entry in getattr(modeling_auto, f"MODEL_FOR_{suffix}_MAPPING_NAMES", {}).values():
            names.update([entry] if isinstance(entry, str) else entry)
    return frozenset(names)


class _Batch:
    def __init__(self, kind: Any, config: Any, sizes: Sizes) -> None:
        self.kind, self.config, self.batch = kind, config, sizes.batch
        self.text = config.get_text_config()
        self.takes = inspect.signature(kind.forward).parameters
        self.main = getattr(kind, "main_input_name", "input_ids")
        self.seq = sizes.seq or min(LONGEST, self._positions())
        self.asked = sizes
        self.made: dict[str, Any] = {}

    def make(self, *, labels: bool) -> dict[str, Any]:
        if "input_ids" in self.takes:
            self._tokens()
        unpaired = self.main != "pixel_values" and self.kind.__name__ in _task("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
        if "pixel_values" in self.takes and not unpaired:
            self.made["pixel_values"] = self._images()
        if "input_features" in self.takes and self.main == "input_features":
            self.made["input_features"] = self._features()
        if "input_values" in self.takes and self.main == "input_values":
            self.made["input_values"] = self._audio()
        if labels:
            self._labels()
        if self.config.is_encoder_decoder and "labels" not in self.made and "decoder_input_ids" in self.takes:
            self.made["decoder_input_ids"] = self._ids((self.batch, self.seq))
        return self.made

    # -- inputs --------------------------------------------------------------------------------

    def _positions(self) -> int:
        names = ("max_position_embeddings", "n_positions", "max_target_positions")
        found = [getattr(self.text, name, None) for name in names]
        return next((n for n in found if isinstance(n, int) and n > 0), LONGEST)

    def _ids(self, shape: tuple[int, ...]) -> torch.Tensor:
        rows = int(self.text.vocab_size)
        ids = torch.full(shape, min(5, rows - 1), dtype=torch.int64)
        last = getattr(self.text, "eos_token_id", None)
        last = last[0] if isinstance(last, list) and last else last
        if isinstance(last, int) and 0 <= last < rows:
            ids[..., -1] = last
        return ids

    def _tokens(self) -> None:
        choices = (2,) if self.kind.__name__ in _task("MULTIPLE_CHOICE") else ()
        ids = self._ids((self.batch, *choices, self.seq))
        self.made["input_ids"] = ids
        if "attention_mask" in self.takes:
            self.made["attention_mask"] = torch.ones_like(ids)

    def _image_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width."""
        part = getattr(self.config, "vision_config", None) or getattr(self.config, "encoder", None) or self.config
        size = self.asked.image_size or getattr(part, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        channels = getattr(part, "num_channels", None) or getattr(part, "in_channels", None) or 3
        return int(channels), int(height), int(width)

    def _images(self) -> torch.Tensor:
        frames = getattr(self.config, "num_frames", None) if self.kind.__name__ in _task("VIDEO_CLASSIFICATION") else 0
        return torch.randn(self.batch, *((frames,) if frames else ()), *self._image_shape())

    def _features(self) -> torch.Tensor:
        config = self.config
        if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):  # whisper: bins first
            return torch.randn(self.batch, config.num_mel_bins, 2 * config.max_source_positions)
        names = ("input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins", "input_dim")
        width = next((getattr(config, name) for name in names if hasattr(config, name)), 80)
        return torch.randn(self.batch, self.seq, int(width))

    def _audio(self) -> torch.Tensor:
        if hasattr(self.config, "num_mel_bins") and hasattr(self.config, "max_length"):  # a spectrogram
            return torch.randn(self.batch, self.config.max_length, self.config.num_mel_bins)
        return torch.randn(self.batch, self._samples())

    def _samples(self) -> int:
        return self.asked.seq or SECOND

    # -- labels --------------------------------------------------------------------------------

    def _labels(self) -> None:
        name = self.kind.__name__
        for tasks, label in LABELS:
            if name in _task(*tasks):
                self.made |= {key: value for key, value in label(self).items() if key in self.takes}
                return

    def classes(self) -> dict[str, Any]:
        """One class for each sample; a sequence classifier looks for the padding."""
        if "input_ids" in self.made and getattr(self.config, "pad_token_id", 0) is None:
            self.config.pad_token_id = self.text.pad_token_id = 0
        return {"labels": torch.zeros(self.batch, dtype=torch.int64)}

    def tokens(self) -> dict[str, Any]:
        """A token for each position; a sentence label where both are learned."""
        if "labels" not in self.takes:
            return {}
        labels = {"labels": self._ids((self.batch, self.seq))}
        for name in ("next_sentence_label", "sentence_order_label"):
            labels[name] = torch.zeros(self.batch, dtype=torch.int64)
        return labels

    def token_classes(self) -> dict[str, Any]:
        """A class for each position."""
        return {"labels": torch.zeros(self.batch, self.seq, dtype=torch.int64)}

    def span(self) -> dict[str, Any]:
        """First and last position of an answer."""
        return {name: torch.zeros(self.batch, dtype=torch.int64) for name in ("start_positions", "end_positions")}

    def characters(self) -> dict[str, Any]:
        """Half as many labels as there are frames."""
        ratio = getattr(self.config, "inputs_to_logits_ratio", None)
        frames = self._samples() // ratio if ratio else self.seq
        return {"labels": torch.ones(self.batch, max(1, frames // 2), dtype=torch.int64)}

    def pixels(self) -> dict[str, Any]:
        """A class for each pixel."""
        return {"labels": torch.zeros(self.batch, *self._image_shape()[1:], dtype=torch.int64)}

    def masked_patches(self) -> dict[str, Any]:
        """No patch is masked."""
        patch = int(getattr(self.config, "patch_size", 16))
        patches = prod(extent // patch for extent in self._image_shape()[1:])
        return {"bool_masked_pos": torch.zeros(self.batch, patches, dtype=torch.bool)}

    def pairs(self) -> dict[str, Any]:
        """Images and texts of equal number are compared."""
        return {"return_loss": True}


LABELS: tuple[tuple[tuple[str, ...], Callable[[_Batch], dict[str, Any]]], ...] = (
    (("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT"), _Batch.tokens),
    (("SEQUENCE_CLASSIFICATION", "MULTIPLE_CHOICE", "NEXT_SENTENCE_PREDICTION"), _Batch.classes),
    (("IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "AUDIO_CLASSIFICATION"), _Batch.classes),
    (("TOKEN_CLASSIFICATION",), _Batch.token_classes),
    (("QUESTION_ANSWERING",), _Batch.span),
    (("CTC",), _Batch.characters),
    (("SEMANTIC_SEGMENTATION",), _Batch.pixels),
    (("MASKED_IMAGE_MODELING",), _Batch.masked_patches),
    (("ZERO_SHOT_IMAGE_CLASSIFICATION",), _Batch.pairs),
    (("PRETRAINING",), _Batch.tokens),
)
"""Tables of transformers' auto models, and what the loss of their models compares with."""
