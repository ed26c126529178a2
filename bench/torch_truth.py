"""The truth: live bytes of one real PyTorch training step on the CPU, from the profiler's allocator events.

Every malloc and free of PyTorch's CPU allocator between building the model and the end of step 2 is
recorded, tensors and kernels' temporaries alike. Peaks are maxima of their running sum.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

Batch = list[torch.Tensor]
Loss = Callable[[], torch.Tensor]


def vgg16(dropout: float = 0.5) -> nn.Module:
    """Plain VGG-16 with in-place ReLU."""
    layers: list[nn.Module] = []
    channels = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    for inputs in (512 * 49, 4096):
        head += [nn.Linear(inputs, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers, *head, nn.Linear(4096, 1000))


class Bottleneck(nn.Module):
    """ResNet v1.5 bottleneck: the stride is in the 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        shortcut = (nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if project else ()
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return self.relu(out)


def resnet50(blocks: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Module:
    """ResNet-50 v1.5; deeper ones have more *blocks* in each stage."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, (width, repeats) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
        for block in range(repeats):
            layers.append(Bottleneck(channels, width, 2 if stage and not block else 1, not block))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def build(
    model: str, batch: int, sequence: int, attention: str, dropout: float | None
) -> tuple[nn.Module, Batch, Loss]:
    """Return the model in training mode, what the user's batch holds, and the forward pass to the loss."""
    if model in ("vgg16", "resnet50"):
        net = vgg16(0.5 if dropout is None else dropout) if model == "vgg16" else resnet50()
        return _classify(net, batch)
    import transformers

    transformers.logging.set_verbosity_error()
    if model == "vit_b":
        config = transformers.ViTConfig(num_labels=1000)
        _set_dropout(config, dropout, "hidden_dropout_prob", "attention_probs_dropout_prob")
        config._attn_implementation = attention
        vit = transformers.ViTForImageClassification(config)
        pixels, labels = torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))
        return vit, [pixels, labels], lambda: vit(pixel_values=pixels, labels=labels).loss
    if model == "gpt2":
        config = transformers.GPT2Config(use_cache=False)
        _set_dropout(config, dropout, "resid_pdrop", "embd_pdrop", "attn_pdrop")
        kind: Any = transformers.GPT2LMHeadModel
    else:
        config = transformers.BertConfig()
        _set_dropout(config, dropout, "hidden_dropout_prob", "attention_probs_dropout_prob")
        kind = transformers.BertForMaskedLM
    config._attn_implementation = attention
    net = kind(config)
    tokens = [torch.randint(0, config.vocab_size, (batch, sequence)) for _ in range(2)]
    mask = torch.ones(batch, sequence, dtype=torch.long)
    return net, [*tokens, mask], lambda: net(input_ids=tokens[0], attention_mask=mask, labels=tokens[1]).loss


def _classify(net: nn.Module, batch: int) -> tuple[nn.Module, Batch, Loss]:
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))
    return net, [images, labels], lambda: nn.functional.cross_entropy(net(images), labels)


def _set_dropout(config: Any, dropout: float | None, *names: str) -> None:
    if dropout is not None:
        for name in names:
            setattr(config, name, dropout)


def measure(
    model: str,
    batch: int,
    sequence: int,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    *,
    attention: str = "sdpa",
    dropout: float | None = None,
) -> dict[str, int]:
    """Return the columns of tests/data/measured_peaks_cpu.csv for one configuration, in bytes."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with redirect_stderr(io.StringIO()), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        net, inputs, forward = build(model, batch, sequence, attention, dropout)
        net.train()
        optimize = optimizer(net.parameters())
        for step in (1, 2):
            _step(step, optimize, forward)
    events = recorded.profiler.kineto_results.events()
    ranges = {e.name(): (e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name()[:2] == "##"}
    memory = sorted((e.start_ns(), number, e.nbytes()) for number, e in enumerate(events) if e.name() == "[memory]")
    times, live, total = [], [], 0
    for time, _, change in memory:
        total += change
        times.append(time)
        live.append(total)

    def peak(*names: str) -> int:
        begin, end = ranges[names[0]][0], ranges[names[-1]][1]
        inside = [i for i, time in enumerate(times) if begin <= time <= end]
        before = [i for i, time in enumerate(times) if time < begin]
        return max(live[i] for i in [*before[-1:], *inside])

    forward_end = [i for i, time in enumerate(times) if time <= ranges["##forward1"][1]][-1]
    return {
        "parameter_bytes": sum(p.nbytes for p in net.parameters()),
        "buffer_bytes": sum(b.nbytes for b in net.buffers()),
        "input_bytes": sum(x.nbytes for x in inputs),
        "forward_end_first": live[forward_end],
        "peak_first": peak("##zero1", "##optimizer1"),
        "forward_peak_steady": peak("##forward2"),
        "backward_peak_steady": peak("##backward2"),
        "optimizer_peak_steady": peak("##optimizer2"),
        "peak_steady": peak("##zero2", "##optimizer2"),
    }


def _step(number: int, optimizer: torch.optim.Optimizer, forward: Loss) -> None:
    with record_function(f"##zero{number}"):
        optimizer.zero_grad(set_to_none=True)
    with record_function(f"##forward{number}"):
        loss = forward()
    with record_function(f"##backward{number}"):
        loss.backward()
    with record_function(f"##optimizer{number}"):
        optimizer.step()
