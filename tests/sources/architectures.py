"""Small plain modules of many kinds: name -> function that returns (model, batch) with real tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

Case = tuple[nn.Module, Any]
PLAIN: dict[str, Callable[[], Case]] = {}


def plain(build: Callable[[], Case]) -> Callable[[], Case]:
    PLAIN[build.__name__] = build
    return build


# -- plain modules ---------------------------------------------------------------------------------


class Loss(nn.Module):
    """A model whose output is the cross-entropy of *body*'s scores."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x, target):
        return F.cross_entropy(self.body(x), target)


def classes(batch: int = 4, number: int = 10) -> torch.Tensor:
    return torch.randint(0, number, (batch,))


@plain
def mlp() -> Case:
    return Loss(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 10))), [torch.randn(4, 32), classes()]


@plain
def cnn() -> Case:
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, groups=2, bias=False), nn.GroupNorm(4, 32), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 10),
    )  # fmt: skip
    return Loss(body), [torch.randn(4, 3, 16, 16), classes()]


class UNet(nn.Module):
    """A denoiser: time embedding, skip connections by concatenation, attention at the bottom, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.down1, self.down2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
        self.norm = nn.GroupNorm(8, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.out = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x, noise, t):
        angles = t[:, None].float() * torch.exp(-torch.arange(8.0) / 8)
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        first = F.silu(self.down1(x + noise))
        second = F.silu(self.norm(self.down2(first)) + embedding[:, :, None, None])
        tokens = second.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        bottom = tokens.transpose(1, 2).reshape(second.shape)
        out = self.out(torch.cat([first, self.up(bottom)], 1))
        return {"loss": F.mse_loss(F.interpolate(out, scale_factor=2.0), F.interpolate(noise, scale_factor=2.0))}


@plain
def unet() -> Case:
    x = torch.randn(2, 3, 16, 16)
    return UNet(), {"x": x, "noise": torch.randn_like(x), "t": torch.randint(0, 100, (2,))}


class Recurrent(nn.Module):
    def __init__(self, kind: type, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.rnn = kind(16, 24, num_layers=2, **options)
        self.out = nn.Linear(48 if options.get("bidirectional") else 24, 50)

    def forward(self, tokens):
        scores = self.out(self.rnn(self.embed(tokens))[0])
        return F.cross_entropy(scores.flatten(0, 1), tokens.flatten())


@plain
def lstm() -> Case:
    return Recurrent(nn.LSTM, dropout=0.1), [torch.randint(0, 50, (7, 4))]


@plain
def lstm_bidirectional() -> Case:
    return Recurrent(nn.LSTM, bidirectional=True, batch_first=True), [torch.randint(0, 50, (4, 7))]


@plain
def gru() -> Case:
    return Recurrent(nn.GRU, batch_first=True), [torch.randint(0, 50, (4, 7))]


@plain
def elman() -> Case:
    return Recurrent(nn.RNN), [torch.randint(0, 50, (7, 4))]


class GraphNetwork(nn.Module):
    """Message passing: gather along edges, scatter to nodes, normalize by degree."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.edge = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 16)

    def forward(self, x, edges, target):
        source, sink = edges
        degree = torch.zeros(len(x)).index_add_(0, sink, torch.ones(edges.shape[1])).clamp_(min=1)
        hidden = F.relu(self.first(x))
        messages = self.edge(hidden[source])
        hidden = torch.zeros_like(hidden).scatter_add(0, sink[:, None].expand_as(messages), messages)
        hidden = hidden / degree[:, None]
        best, _ = hidden.max(dim=1, keepdim=True)
        return F.cross_entropy(self.second(hidden - best), target)


@plain
def graph_network() -> Case:
    return GraphNetwork(), [torch.randn(20, 8), torch.randint(0, 20, (2, 60)), torch.randint(0, 4, (20,))]


class Scan(nn.Module):
    """A diagonal state space layer, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gates, self.out = nn.Embedding(30, 16), nn.Linear(16, 32), nn.Linear(16, 30)

    def forward(self, tokens):
        x = self.embed(tokens)
        state = x.new_zeros(x.shape[0], 16)
        states = []
        for step in x.unbind(1):
            decay, value = self.gates(step).chunk(2, -1)
            state = torch.sigmoid(decay) * state + value
            states.append(state)
        return F.cross_entropy(self.out(torch.stack(states, 1)).flatten(0, 1), tokens.flatten())


@plain
def state_space() -> Case:
    return Scan(), [torch.randint(0, 30, (3, 6))]


class Experts(nn.Module):
    """A dense mixture: every expert on every token, weighted by the top two of the router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(4))

    def forward(self, x, target):
        weights, chosen = torch.topk(self.router(x).softmax(-1), 2)
        full = torch.zeros(*x.shape[:-1], 4).scatter(-1, chosen, weights)
        mixed = sum(full[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        return F.mse_loss(mixed, target)


@plain
def dense_experts() -> Case:
    return Experts(), [torch.randn(5, 16), torch.randn(5, 16)]


@plain
def torch_transformer() -> Case:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    body = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(160, 10))
    return Loss(body), [torch.randn(4, 5, 32), classes()]


class Autoencoder(nn.Module):
    """Variational: a random latent, two losses."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(32, 16), nn.Linear(8, 32)

    def forward(self, x):
        mean, spread = self.encode(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        restored = self.decode(z)
        divergence = -0.5 * (1 + spread - mean.pow(2) - spread.exp()).sum()
        return F.binary_cross_entropy_with_logits(restored, x.sigmoid(), reduction="sum") + divergence


@plain
def autoencoder() -> Case:
    return Autoencoder(), [torch.randn(6, 32)]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.embed = nn.Linear(16, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 32))
            for _ in range(3)
        )

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return x.square().mean()


@plain
def checkpoint_reentrant() -> Case:
    return Checkpointed(True), [torch.randn(4, 16)]


@plain
def checkpoint_not_reentrant() -> Case:
    return Checkpointed(False), [torch.randn(4, 16)]


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 10))

    def forward(self, x, target):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(self.body(x).float(), target)


@plain
def autocast() -> Case:
    return Autocast(), [torch.randn(4, 16), classes()]


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        y = x * scale
        ctx.save_for_backward(x, y)
        return y * x

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad * y + grad * x, (grad * x * x).sum().reshape(1)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.ones(1)), nn.Linear(8, 8)

    def forward(self, x):
        return Square.apply(self.linear(x), self.scale).mean()


@plain
def custom_function() -> Case:
    return Custom(), [torch.randn(4, 8)]


class TiedFrozen(nn.Module):
    """Tied input and output embeddings, a frozen layer in between, an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.frozen, self.unused = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(3, 3)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight
        self.frozen.requires_grad_(False)

    def forward(self, tokens):
        return F.cross_entropy(self.head(torch.tanh(self.frozen(self.embed(tokens)))).flatten(0, 1), tokens.flatten())


@plain
def tied_and_frozen() -> Case:
    return TiedFrozen(), [torch.randint(0, 40, (3, 5))]


class Several(nn.Module):
    """Packs, slices, in-place ops, indexing with masks of known content."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, lengths):
        x = self.linear(x)
        keep = torch.arange(x.shape[1])[None] < lengths[:, None]
        x = x.masked_fill(~keep[..., None], 0.0)
        total = x[keep].cumsum(0)
        x = x.clone()
        x[:, 0] += 1.0
        x.mul_(2.0)
        return (x[:, 1:] * x[:, :-1]).mean() + total.std() + x.norm() if keep.any() else x.sum()


@plain
def masks_and_slices() -> Case:
    return Several(), [torch.randn(3, 6, 8), torch.tensor([2, 6, 4])]
