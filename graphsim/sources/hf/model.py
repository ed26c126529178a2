"""From the fields of a config to the captured step of the model that they describe."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import transformers
from huggingface_hub import constants
from torch.nn.modules.module import register_module_module_registration_hook
from transformers.models.auto import configuration_auto, modeling_auto

from graphsim.core.devices import Device
from graphsim.errors import CaptureError, GraphSimError, SpecError, suggest
from graphsim.sources.bounds import bounded_memory
from graphsim.sources.hf.batch import make_batch, sizes_of
from graphsim.sources.hf.config import check_changes, known_type, plain_fields, read_config
from graphsim.sources.hf.layers import of_few_layers
from graphsim.sources.spec.expression import Value
from graphsim.sources.torch.capture import AS_IT_IS, Capture, capture
from graphsim.sources.torch.recipe import low_dtype
from graphsim.step.training import Training

MAX_MODULES = 2**16
MAX_BYTES = 4 * 2**30
"""Of memory to make a model in. Its weights take none; its Python objects do."""


def capture_config(
    path: str,
    optimizer: Any,
    parameters: Mapping[str, Value],
    *,
    device: Device | None = None,
    training: Training = AS_IT_IS,
) -> Capture:
    """Capture the step of the model that the config at *path* describes, as *training* says; see `load_hf`."""
    data = read_config(path)
    kind_of_config = configuration_auto.CONFIG_MAPPING[
        known_type(data, set(configuration_auto.CONFIG_MAPPING.keys()), path)
    ]
    sizes, changes = sizes_of(parameters, path)
    if training.kv_cache and sizes.seq is None:
        sizes = sizes._replace(seq=1)  # tokens beside those in the cache
    if data.get("quantization_config") is not None:
        raise SpecError("'quantization_config' is not modelled: remove it to train the model in its own dtype", path)
    with _apart():

        def configured(**more: Value) -> Any:
            return _made(path, lambda: _config(kind_of_config, plain_fields(data), {**changes, **more}, path))

        config = configured()
        kind = _model_class(config, path)
        # As AutoModel.from_config does: in the config's dtype, or in the one that is asked for (``dtype=``).
        make = partial(kind._from_config, **({"dtype": low} if (low := low_dtype(training)) else {}))

        def captured_of(config: Any) -> Capture:
            return capture(
                lambda: _made(path, lambda: make(config)),
                lambda: make_batch(kind, config, sizes, labels=training.mode != "inference"),
                optimizer=optimizer,
                loss=None,
                step=None,
                device=device,
                training=training,
            )

        done = (training, str(optimizer), device)
        try:
            captured = of_few_layers(config, make, configured, captured_of, done) or captured_of(config)
        except CaptureError as error:
            raise CaptureError(f"{path}: {error.reason}", error.layer, error.line) from error
        except GraphSimError:
            raise
        except Exception as error:  # a config that lacks what its model's inputs are made of
            raise CaptureError(f"{path}: {_said(error)}") from error
    chosen = {name: value for name, value in sizes._asdict().items() if value is not None}
    return replace(captured, attributes={**captured.attributes, "params": {**changes, **chosen}})


def _config(kind: Any, fields: Mapping[str, Any], changes: Mapping[str, Value], path: str) -> Any:
    config = kind.from_dict(dict(fields))
    if not changes:
        return config
    check_changes(config, changes, path)
    return kind.from_dict({**fields, **changes})


def _made(path: str, make: Callable[[], Any]) -> Any:
    """Return what transformers makes of the config, in bounded memory."""
    try:
        with bounded_memory(MAX_BYTES), _bounded_modules(path):
            return make()
    except GraphSimError:
        raise
    except MemoryError:
        raise SpecError(f"the model does not fit in {MAX_BYTES} bytes without its weights", path) from None
    except Exception as error:
        raise SpecError(
            f"transformers {transformers.__version__} cannot make this model: {_said(error)}", path
        ) from error


@contextmanager
def _bounded_modules(path: str) -> Iterator[None]:
    count = 0

    def one(*_: object) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODULES:
            raise SpecError(f"the model has more than {MAX_MODULES} modules", path)

    hook = register_module_module_registration_hook(one)
    try:
        yield
    finally:
        hook.remove()


def _model_class(config: Any, path: str) -> Any:
    """Return the first of the config's ``architectures`` that transformers has, or the base model."""
    names = config.architectures or []
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        found = getattr(transformers, str(name), None)
        if _is_model_of(found, config):
            return found
    if names:
        known = {name for name in _classes_of(config.model_type) if _is_model_of(getattr(transformers, name), config)}
        what = f"'{str(names[0])[:60]}' is no model of transformers for model_type '{config.model_type}'"
        raise SpecError(f"{what}; {suggest(str(names[0]), known)}", path)
    try:
        found = modeling_auto.MODEL_MAPPING[type(config)]
    except KeyError:
        known = _classes_of(config.model_type)
        raise SpecError(f"name the model in 'architectures'; {suggest('', known)}", path) from None
    return found[0] if isinstance(found, tuple | list) else found


def _is_model_of(found: Any, config: Any) -> bool:
    return (
        isinstance(found, type)
        and issubclass(found, transformers.PreTrainedModel)
        and isinstance(config, getattr(found, "config_class", None) or ())
    )


def _classes_of(model_type: str) -> set[str]:
    tables = (value for name, value in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES"))
    found: set[str] = set()
    for table in tables:
        names = table.get(model_type, ())
        found.update([names] if isinstance(names, str) else names)
    return {name for name in found if not name.endswith("Config")}


@contextmanager
def _apart() -> Iterator[None]:
    """Keep transformers off the network, and quiet: what it would say is not about memory."""
    logger = logging.getLogger("transformers")
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            logger.setLevel(level)
            constants.HF_HUB_OFFLINE = offline


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
