"""Training steps that a GPU is to record, smallest and most telling first: see gpu_record.py.

A case is made the same way where it is run and where it is captured: a model, a batch, a loss and an optimizer, and
what is set beside them. Needs PyTorch; those named hf: also transformers, without which they are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch_truth import resnet50, vgg16
from workloads_inception import inception_v3
from workloads_training import Encoder, mobilenet_v2

PHASES = ("zero_grad", "forward", "backward", "optimizer")
SCALE = 256.0
"""Of losses: small, so that no step is left out because a gradient overflows, as a prediction assumes."""

Mark = Callable[[str], AbstractContextManager[None]]


class Case(NamedTuple):
    """What is trained, and how.

    Attributes:
        loss: ``(model, batch)``.
        optimizer: of the parameters.
        autocast: its dtype; with *scaler* under a GradScaler.
        settings: of tf32, benchmark (cudnn.benchmark), channels_last.
        allocator: PYTORCH_ALLOC_CONF of the process.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[torch.Tensor, ...]]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4)
    autocast: torch.dtype | None = None
    scaler: bool = False
    settings: tuple[str, ...] = ()
    allocator: str = ""


def step_of(case: Case, device: str, mark: Mark = lambda _: nullcontext()) -> Callable[[Any, Any, Any], None]:
    """Return the step of *case*, ``(model, batch, optimizer)``; each of `PHASES` runs inside of a *mark*."""

    @cache
    def scaler_of() -> torch.amp.GradScaler | None:  # made in the step: a capture pretends the device only there
        return torch.amp.GradScaler(device, init_scale=SCALE) if case.scaler else None

    def step(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> None:
        scaler = scaler_of()
        with mark("zero_grad"):
            optimizer.zero_grad(set_to_none=True)
        with mark("forward"), torch.autocast(device, case.autocast) if case.autocast else nullcontext():
            loss = case.loss(model, batch)
        with mark("backward"):
            (scaler.scale(loss) if scaler else loss).backward()
        with mark("optimizer"):
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()

    return step


@contextmanager
def settings_of(case: Case) -> Iterator[None]:
    """Set inside what *case* asks of cuDNN."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = "tf32" in case.settings, "benchmark" in case.settings
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before


# -- models ------------------------------------------------------------------------------------------


def _classified(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def _language(model: nn.Module, batch: Any) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=batch[0], labels=batch[1]).loss
    return loss


def _sequence(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch[0])[0].square().mean()


def _images(batch: int, size: int = 224) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: (torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,)))


def _tokens(batch: int, length: int, vocabulary: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: (torch.randint(0, vocabulary, (batch, length)), torch.randint(0, vocabulary, (batch, length)))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def _numbers() -> tuple[torch.Tensor, ...]:
    return torch.randn(512, 256), torch.randint(0, 10, (512,))


class Words(nn.Module):
    """An embedding of more than 3,072 tokens, whose backward sorts them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(10_000, 256), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(self.table(x).mean(1))


class Blocks(nn.Module):
    """Layers of an encoder, each checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True) for _ in range(4))
        self.layers, self.out = nn.ModuleList(layers), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> Any:
        from torch.utils.checkpoint import checkpoint

        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return self.out(x.mean(1))


def _group_norm() -> nn.Module:
    layers = (nn.Conv2d(3, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(64, 1000))


def _hf(kind: str, **config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        named = {"gpt2": "GPT2", "bert": "Bert", "vit": "ViT"}[kind]
        head = {"gpt2": "LMHeadModel", "bert": "ForMaskedLM", "vit": "ForImageClassification"}[kind]
        settings = getattr(transformers, f"{named}Config")(**config)
        model: nn.Module = getattr(transformers, f"{named}{head}")(settings)
        return model

    return make


def _pixels(model: nn.Module, batch: Any) -> torch.Tensor:
    loss: torch.Tensor = model(pixel_values=batch[0], labels=batch[1]).loss
    return loss


# -- cases -------------------------------------------------------------------------------------------

BF16 = torch.bfloat16
_SMALL = Case(_mlp, _numbers, _classified)
_GPT2 = Case(_hf("gpt2", use_cache=False), _tokens(4, 128, 50257), _language)
_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, fused=True),
    "adamw-forloop": lambda p: torch.optim.AdamW(p, foreach=False, fused=False),
}


def _networks() -> Iterator[tuple[str, Case]]:
    """Yield convolutional networks at three batches, then in other forms at the middle one."""
    networks = {
        "vgg16": (vgg16, 224),
        "resnet50": (resnet50, 224),
        "mobilenet_v2": (mobilenet_v2, 224),
        "inception_v3": (inception_v3, 299),
    }
    for name, (model, size) in networks.items():
        for batch in (8, 32, 64):
            yield f"{name}/fp32/{batch}", Case(model, _images(batch, size), _classified)
        plain = Case(model, _images(32, size), _classified)
        yield f"{name}/tf32/32", plain._replace(settings=("tf32",))
        yield f"{name}/bf16/32", plain._replace(autocast=BF16)
        yield f"{name}/tf32-benchmark/32", plain._replace(settings=("tf32", "benchmark"))
        yield f"{name}/bf16-channels_last/32", plain._replace(autocast=BF16, settings=("channels_last",))


LARGE = ("vgg16", "resnet50", "mobilenet_v2", "inception_v3")
"""Begins the names of cases that take long."""

CASES: dict[str, Case] = {
    **{f"mlp/{name}": _SMALL._replace(optimizer=made) for name, made in _OPTIMIZERS.items()},
    "mlp/bf16": _SMALL._replace(autocast=BF16),
    "mlp/fp16-scaler": _SMALL._replace(autocast=torch.float16, scaler=True),
    "mlp/expandable": _SMALL._replace(allocator="expandable_segments:True"),
    "embedding": Case(Words, lambda: (torch.randint(0, 10_000, (64, 128)), torch.randint(0, 10, (64,))), _classified),
    "group_norm": Case(_group_norm, _images(8, 64), _classified),
    "lstm": Case(lambda: nn.LSTM(256, 512, 2, batch_first=True), lambda: (torch.randn(32, 64, 256),), _sequence),
    "gru": Case(lambda: nn.GRU(256, 512, 2, batch_first=True), lambda: (torch.randn(32, 64, 256),), _sequence),
    "encoder": Case(
        lambda: Encoder(10_000, 256, 4, 8, 1024, 128, 10),
        lambda: (torch.randint(0, 10_000, (32, 128)), torch.randint(0, 10, (32,))),
        _classified,
    ),
    "checkpoint": Case(Blocks, lambda: (torch.randn(16, 128, 256), torch.randint(0, 10, (16,))), _classified),
    "hf:gpt2/fp32": _GPT2,
    "hf:gpt2/bf16": _GPT2._replace(autocast=BF16),
    "hf:gpt2/fp16-scaler": _GPT2._replace(autocast=torch.float16, scaler=True),
    "hf:gpt2/expandable": _GPT2._replace(allocator="expandable_segments:True"),
    "hf:bert": Case(_hf("bert"), _tokens(8, 128, 30522), _language),
    "hf:vit": Case(_hf("vit", num_labels=1000), _images(8), _pixels),
    **dict(_networks()),
}
"""Cases by name, in the order in which they are recorded."""
