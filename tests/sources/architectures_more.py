"""More small architectures, of families that `architectures` lacks: name -> function that returns (model, batch)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from architectures import Case, classes
from torch import nn

MORE: dict[str, Callable[[], Case]] = {}


def more(*batch: Callable[[], torch.Tensor]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Enter a module that returns its loss, with functions that make its operands."""

    def enter(kind: type[nn.Module]) -> type[nn.Module]:
        MORE[kind.__name__] = lambda: (kind(), [make() for make in batch])
        return kind

    return enter


def floats(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(shape)


def integers(high: int, *shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(0, high, shape)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# -- detection and segmentation ----------------------------------------------------------------------


@more(floats(2, 3, 16, 16), integers(3, 2, 64), floats(2, 64, 4))
class DenseDetector(nn.Module):
    """A class and a box for each cell: focal loss and smooth L1 on the cells with an object."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x, labels, boxes):
        h = self.body(x)
        scores = self.scores(h).flatten(2).transpose(1, 2)
        target = F.one_hot(labels, 3).float()
        sure = torch.sigmoid(scores)
        focus = (1 - (sure * target + (1 - sure) * (1 - target))) ** 2
        focal = (focus * F.binary_cross_entropy_with_logits(scores, target, reduction="none")).sum() / 64
        found = labels > 0
        return focal + F.smooth_l1_loss(self.boxes(h).flatten(2).transpose(1, 2)[found], boxes[found])


@more(floats(2, 8, 12, 12), floats(5, 4))
class RegionHead(nn.Module):
    """Features of regions by bilinear sampling, their classes, and the overlap of their boxes as a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.shift = nn.Linear(8 * 9, 4), nn.Linear(8 * 9, 4)

    def forward(self, x, boxes):
        grid = torch.linspace(-1, 1, 3)
        points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
        regions = points[None] * boxes[:, None, None, 2:].sigmoid() + boxes[:, None, None, :2].tanh()
        h = F.grid_sample(x[:1].expand(5, -1, -1, -1), regions, align_corners=False).flatten(1)
        moved = boxes + self.shift(h)
        low, high = torch.minimum(moved[:, :2], boxes[:, :2]), torch.maximum(moved[:, 2:], boxes[:, 2:])
        overlap = (high - low).clamp(min=0).prod(1)
        return F.cross_entropy(self.head(h), torch.arange(5) % 4) + (1 - overlap.tanh()).mean()


@more(floats(2, 20, 16), integers(5, 2, 3), integers(6, 2, 3))
class SetPrediction(nn.Module):
    """Learned queries look at features (DETR), matched to objects by a matching that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(6, 16))
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.scores = nn.Linear(16, 6)

    def forward(self, memory, labels, matched):
        h = self.decoder(self.queries.expand(2, -1, -1), memory)
        target = torch.full((2, 6), 5).scatter(1, matched, labels)
        weight = torch.ones(6)
        weight[-1] = 0.1
        return F.cross_entropy(self.scores(h).transpose(1, 2), target, weight)


@more(floats(2, 3, 16, 16), integers(2, 2, 1, 16, 16))
class Segmenter(nn.Module):
    """Atrous pyramid, upsampling, and Dice beside a cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.rates = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=r, dilation=r) for r in (1, 2, 3))
        self.out = nn.Conv2d(12, 1, 1)

    def forward(self, x, mask):
        h = F.hardswish(self.stem(x))
        h = self.out(torch.cat([F.elu(rate(h)) for rate in self.rates], 1))
        h = F.interpolate(h, size=mask.shape[-2:], mode="bilinear", align_corners=False)
        sure, mask = h.sigmoid(), mask.float()
        dice = 1 - (2 * (sure * mask).sum() + 1) / (sure.sum() + mask.sum() + 1)
        return dice + F.binary_cross_entropy(sure, mask)


# -- mixtures of experts -----------------------------------------------------------------------------


@more(floats(12, 16))
class CapacityExperts(nn.Module):
    """Tokens go to experts through one-hot dispatch with a capacity (GShard), with a loss of balance."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(4, 16, 32)), nn.Parameter(torch.randn(4, 32, 16))

    def forward(self, x):
        gates = self.router(x).softmax(-1)
        chosen = F.one_hot(gates.argmax(-1), 4).float()
        position = (chosen.cumsum(0) * chosen - 1).long()
        slots = F.one_hot(position.clamp(min=0, max=3), 4).float() * chosen[..., None]
        inside = torch.einsum("tec,td->ecd", slots, x)
        inside = torch.bmm(F.relu(torch.bmm(inside, self.up)), self.down)
        out = torch.einsum("tec,ecd->td", slots * gates[..., None], inside)
        return out.square().mean() + 4 * (gates.mean(0) * chosen.mean(0)).sum()


@more(floats(10, 16), integers(3, 10))
class RoutedExperts(nn.Module):
    """Each expert takes the tokens that a known route gives it, and adds to what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(16, 24, 16) for _ in range(3))
        self.gate = nn.Linear(16, 3)

    def forward(self, x, route):
        gates = self.gate(x).softmax(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            tokens = torch.where(route == number)[0]
            out.index_add_(0, tokens, expert(x[tokens]) * gates[tokens, number, None])
        return (x + out).square().mean()


# -- speech and sequences ----------------------------------------------------------------------------


@more(floats(3, 12, 13), integers(9, 3, 2))
class Speech(nn.Module):
    """Convolution in time, a bidirectional GRU, and CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(13, 16, 3, stride=2, padding=1), nn.BatchNorm1d(16)
        self.rnn, self.out = nn.GRU(16, 12, batch_first=True, bidirectional=True), nn.Linear(24, 10)

    def forward(self, x, labels):
        h = F.hardtanh(self.norm(self.conv(x.transpose(1, 2))), 0, 20).transpose(1, 2)
        scores = self.out(self.rnn(h)[0]).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, labels + 1, torch.full((3,), 6), torch.full((3,), 2), zero_infinity=True)


@more(floats(2, 4, 32))
class WaveNet(nn.Module):
    """Causal dilated convolutions with gates, skips and weight normalization."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(norm(nn.Conv1d(4, 8, 2, dilation=2**i)) for i in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(3))

    def forward(self, x):
        start, total = x, torch.zeros_like(x)
        for number, (layer, skip) in enumerate(zip(self.layers, self.skips, strict=True)):
            a, b = layer(F.pad(x, (2**number, 0))).chunk(2, 1)
            h = torch.tanh(a) * torch.sigmoid(b)
            total = total + skip(h)
            x = x + h
        return F.huber_loss(total[..., :-1], start[..., 1:])


@more(integers(20, 3, 6), integers(20, 3, 5))
class Translator(nn.Module):
    """Encoder, decoder cell by cell, additive attention over what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encode = nn.Embedding(20, 12, padding_idx=0), nn.LSTM(12, 12, batch_first=True)
        self.cell = nn.GRUCell(24, 12)
        self.query, self.key, self.energy = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 1)
        self.out = nn.Linear(12, 20)

    def forward(self, source, target):
        memory, (state, _) = self.encode(self.embed(source))
        state, keys, scores = state[0], self.key(memory), []
        for word in self.embed(target).unbind(1):
            weights = self.energy(torch.tanh(self.query(state)[:, None] + keys)).softmax(1)
            state = self.cell(torch.cat([word, (weights * memory).sum(1)], -1), state)
            scores.append(self.out(state))
        return F.cross_entropy(torch.stack(scores, 1).flatten(0, 1), target.flatten(), ignore_index=0)


@more(integers(5, 3, 7), integers(4, 3, 7))
class Tagger(nn.Module):
    """A conditional random field: the forward algorithm by logsumexp, and the score of the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scores, self.moves = nn.Embedding(5, 8), nn.Linear(8, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, words, tags):
        scores = self.scores(self.embed(words))
        total = scores[:, 0]
        for step in scores.unbind(1)[1:]:
            total = torch.logsumexp(total[:, :, None] + self.moves, 1) + step
        gold = scores.gather(2, tags[..., None]).sum((1, 2)) + self.moves[tags[:, :-1], tags[:, 1:]].sum(1)
        return (torch.logsumexp(total, -1) - gold).mean()


# -- graphs and sets ---------------------------------------------------------------------------------


@more(floats(15, 8), integers(15, 2, 40))
class Isomorphism(nn.Module):
    """Sums over neighbours by index_select and index_add (as in PyTorch Geometric)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.epsilon = mlp(8, 16, 8), mlp(8, 16, 3), nn.Parameter(torch.zeros(1))

    def forward(self, x, edges):
        for layer in (self.first, self.second):
            near = torch.zeros_like(x).index_add(0, edges[1], x.index_select(0, edges[0]))
            x = layer((1 + self.epsilon) * x + near)
        return x.logsumexp(-1).mean()


@more(floats(15, 8), integers(15, 2, 40))
class GraphAttention(nn.Module):
    """A softmax over the edges of each node, by scatter_reduce and scatter_add."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.score = nn.Linear(8, 8), nn.Linear(16, 1)

    def forward(self, x, edges):
        h = self.map(x)
        score = F.leaky_relu(self.score(torch.cat([h[edges[0]], h[edges[1]]], -1)), 0.2).squeeze(-1)
        highest = torch.full((15,), -math.inf).scatter_reduce(0, edges[1], score.detach(), "amax")
        weight = (score - highest[edges[1]]).exp()
        total = torch.zeros(15).scatter_add(0, edges[1], weight)
        weight = weight / total[edges[1]]
        return torch.zeros_like(h).index_add(0, edges[1], weight[:, None] * h[edges[0]]).square().mean()


@more(floats(2, 10, 3))
class PointCloud(nn.Module):
    """Nearest neighbours, a network on the edges, a maximum over them (EdgeConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.edge, self.out = mlp(6, 16, 8), nn.Linear(8, 4)

    def forward(self, x):
        near = torch.cdist(x, x).topk(3, dim=-1, largest=False)[1]
        neighbours = x.gather(1, near.flatten(1)[..., None].expand(-1, -1, 3)).view(2, 10, 3, 3)
        middle = x[:, :, None].expand_as(neighbours)
        h = self.edge(torch.cat([middle, neighbours - middle], -1)).amax(2)
        return self.out(h.max(1)[0]).square().mean()


@more(floats(3, 7, 8))
class SetAttention(nn.Module):
    """Induced points attend to a set, and the set to them."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(1, 2, 8))
        self.inward = nn.MultiheadAttention(8, 2, batch_first=True)
        self.outward = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        points = self.points.expand(len(x), -1, -1)
        inside = self.inward(points, x, x)[0]
        return self.outward(x, inside, inside, need_weights=False)[0].mean()


# -- vision and fields -------------------------------------------------------------------------------


@more(floats(3, 3, 12, 12), classes)
class PatchTransformer(nn.Module):
    """Patches by unfold, a class token, learned positions, layer scale and stochastic depth that is off."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Linear(48, 16), nn.Parameter(torch.zeros(1, 1, 16))
        self.positions, self.scale = nn.Parameter(torch.zeros(1, 10, 16)), nn.Parameter(torch.full((16,), 0.1))
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 10)

    def forward(self, x, target):
        h = self.patch(F.unfold(x, 4, stride=4).transpose(1, 2))
        h = torch.cat([self.token.expand(3, -1, -1), h], 1) + self.positions
        q, k, v = self.qkv(self.norm(h)).view(3, 10, 3, 2, 8).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
        h = h + self.scale * (weights @ v).transpose(1, 2).flatten(2)
        return F.cross_entropy(self.out(h[:, 0]), target[:3], label_smoothing=0.1)


@more(floats(3, 9, 8), classes)
class Mixer(nn.Module):
    """One network across tokens, one across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.tokens, self.channels = nn.LayerNorm(8), mlp(9, 16, 9), mlp(8, 16, 8)
        self.out = nn.Linear(8, 10)

    def forward(self, x, target):
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm(x))
        return F.cross_entropy(self.out(x.mean(1)), target[:3])


@more(floats(2, 8, 8, 8), classes)
class Squeezed(nn.Module):
    """Depthwise, squeeze and excitation, spectral norm, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.out = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 10))

    def forward(self, x, target):
        h = F.relu6(self.norm(self.deep(x.contiguous(memory_format=torch.channels_last))))
        h = h * F.hardsigmoid(self.excite(F.mish(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        return F.cross_entropy(self.out(h.mean((2, 3))), target[:2])


@more(floats(6, 5, 3))
class Radiance(nn.Module):
    """Frequencies of positions, densities along rays, what light is left (NeRF)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(18, 16, 4)

    def forward(self, points):
        waves = points[..., None] * 2.0 ** torch.arange(3)
        h = self.net(torch.cat([waves.sin(), waves.cos()], -1).flatten(2))
        opaque = 1 - torch.exp(-F.softplus(h[..., 3]))
        left = torch.cumprod(torch.cat([torch.ones(6, 1), 1 - opaque + 1e-10], 1), 1)[:, :-1]
        return ((opaque * left)[..., None] * h[..., :3].sigmoid()).sum(1).square().mean()


@more(floats(4, 6))
class Ordinary(nn.Module):
    """A differential equation by four Runge-Kutta stages, several steps."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))

    def forward(self, x):
        for _ in range(3):
            a = self.slope(x)
            b = self.slope(x + 0.05 * a)
            c = self.slope(x + 0.05 * b)
            x = x + (a + 2 * b + 2 * c + self.slope(x + 0.1 * c)) * (0.1 / 6)
        return x.square().mean()


@more(floats(2, 8, 3, 4))
class LinearAttention(nn.Module):
    """Causal attention without a softmax: running sums of outer products."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = (k[..., :, None] * v[..., None, :]).cumsum(1)
        scale = (q * k.cumsum(1)).sum(-1, keepdim=True)
        return ((q[..., None, :] @ state).squeeze(-2) / scale).square().mean()
