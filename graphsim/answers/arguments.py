"""Hugging Face ``TrainingArguments`` in a JSON file, as options of ours by the names that they have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from graphsim.core.files import parse_json, read_text
from graphsim.errors import MissingExtraError, SpecError, UsageError, suggest

MAX_FILE = 2**20

NUMBERS = {"per_device_train_batch_size": "batch", "gradient_accumulation_steps": "accumulation"}
OPTIMIZERS: dict[str, dict[str, str]] = {
    "adamw_torch": {"optimizer": "adamw"},
    "adamw_torch_fused": {"optimizer": "adamw", "optimizer_impl": "fused"},
    "adamw_bnb_8bit": {"optimizer": "adam8bit"},
    "adamw_8bit": {"optimizer": "adam8bit"},
    "sgd": {"optimizer": "sgd"},
    "adagrad": {"optimizer": "adagrad"},
    "rmsprop": {"optimizer": "rmsprop"},
}
"""What ``optim`` names (transformers/trainer_optimizer.py), as far as it is an optimizer of ours."""

REFUSED = (
    "deepspeed", "fsdp", "torch_compile", "use_liger_kernel", "neftune_noise_alpha", "label_smoothing_factor",
    "optim_target_modules", "parallelism_config",
)  # fmt: skip
"""What changes the memory of a step in a way that is not modelled. The other arguments do not change it."""


def options_of(path: str | Path) -> dict[str, Any]:
    """Return the options that the training arguments in the JSON file *path* are; what is not there has its default.

    Raises:
        MissingExtraError: transformers is not installed; it knows the names and the defaults.
        SpecError: there is no such file, or no such argument.
        UsageError: an argument asks for what is not modelled.
    """
    given = _read(path)
    defaults = _defaults()
    for name in given:
        if name not in defaults:
            raise SpecError(f"TrainingArguments have no '{name[:60]}'; {suggest(name, defaults)}", str(path))
        if name in REFUSED and given[name] not in (None, False, 0, "", [], {}, defaults[name]):
            raise UsageError(f"{path}: '{name}' is not modelled")
    said = {**defaults, **given}
    options: dict[str, Any] = {ours: _number(said, name, str(path)) for name, ours in NUMBERS.items()}
    options["grad_checkpointing"] = bool(said.get("gradient_checkpointing"))
    if (said.get("gradient_checkpointing_kwargs") or {}).get("use_reentrant"):
        raise UsageError(f"{path}: 'gradient_checkpointing_kwargs' with use_reentrant is not modelled")
    if said.get("bf16") or said.get("fp16"):
        options["precision"] = "amp-bf16" if said.get("bf16") else "amp-fp16"
    if said.get("use_cpu"):
        options["target"] = "cpu"
    optim = str(getattr(said["optim"], "value", said["optim"]))
    if optim not in OPTIMIZERS:
        raise UsageError(f"{path}: 'optim' {optim[:60]} is not modelled; {suggest(optim, OPTIMIZERS)}")
    return options | OPTIMIZERS[optim]


def with_arguments(said: Mapping[str, Any], path: str | Path, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return *said* with the options of the file *path*; *plain* are the values of options that were not said.

    Raises:
        UsageError: an option and the file say different things.
    """
    merged = dict(said)
    for name, value in options_of(path).items():
        if said.get(name) not in (None, plain.get(name), value):
            raise UsageError(f"{name} is said twice: {said[name]}, and {value} in {path}")
        merged[name] = value
    return merged


def _read(path: str | Path) -> dict[str, Any]:
    try:
        given = parse_json(read_text(path, MAX_FILE))
    except ValueError as error:
        raise SpecError(f"no training arguments in JSON: {error}", str(path)) from None
    if not isinstance(given, dict):
        raise SpecError("no training arguments: a JSON object is expected", str(path))
    return given


def _defaults() -> dict[str, Any]:
    try:
        from transformers import TrainingArguments
    except ImportError:
        raise MissingExtraError("transformers", "hf") from None
    return {f.name: None if f.default is MISSING else f.default for f in fields(TrainingArguments)}


def _number(said: Mapping[str, Any], name: str, path: str) -> int:
    value = said[name]
    if type(value) is not int or not 1 <= value <= 2**31:
        raise SpecError(f"'{name}' must be a positive integer, not {value!r:.60}", path)
    return value
