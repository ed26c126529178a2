"""More small architectures, of families that `architectures` lacks: name -> function that returns (model, batch)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from architectures import Case, Loss, classes
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


# -- generative models -------------------------------------------------------------------------------


@more(floats(6, 12))
class Quantizer(nn.Module):
    """Nearest codes, a gradient that goes straight through, and the two losses of a codebook (VQ-VAE)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.codes = mlp(12, 16, 8), mlp(8, 16, 12), nn.Embedding(10, 8)

    def forward(self, x):
        z = self.encode(x)
        distances = (z.unsqueeze(1) - self.codes.weight).square().sum(-1)
        q = self.codes(distances.argmin(1))
        straight = z + (q - z).detach()
        return F.mse_loss(self.decode(straight), x) + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


@more(floats(6, 8))
class Flow(nn.Module):
    """Affine couplings whose halves change places (RealNVP)."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(4, 16, 8) for _ in range(3))

    def forward(self, x):
        total = x.new_zeros(len(x))
        for net in self.nets:
            a, b = x.chunk(2, -1)
            scale, shift = net(a).chunk(2, -1)
            scale = torch.tanh(scale)
            x = torch.cat([b * scale.exp() + shift, a], -1)
            total = total + scale.sum(-1)
        return -(torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1) + total).mean()


@more(floats(4, 3, 8, 8), integers(10, 4))
class Denoiser(nn.Module):
    """A diffusion step: noise of a known strength, scale and shift by time, the noise as the target."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.first = nn.Embedding(10, 16), nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.out = nn.GroupNorm(2, 8, affine=False), nn.Conv2d(8, 3, 3, padding=1)
        self.register_buffer("kept", torch.linspace(0.99, 0.01, 10))

    def forward(self, x, t):
        noise = torch.randn_like(x)
        kept = self.kept[t].view(-1, 1, 1, 1)
        scale, shift = self.time(t)[..., None, None].chunk(2, 1)
        h = self.norm(self.first(kept.sqrt() * x + (1 - kept).sqrt() * noise)) * (1 + scale) + shift
        return F.mse_loss(self.out(F.silu(h)), noise)


@more(floats(6, 5), floats(6, 1))
class MixtureDensity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, 16, 9)

    def forward(self, x, y):
        weight, mean, spread = self.net(x).chunk(3, -1)
        d = torch.distributions
        mixed = d.MixtureSameFamily(d.Categorical(logits=weight), d.Normal(mean, F.softplus(spread) + 1e-3))
        return -mixed.log_prob(y[:, 0]).mean()


@more(floats(8, 6))
class Adversary(nn.Module):
    """A critic with a penalty on its gradient: a gradient of a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(6, 16), nn.Softplus(), nn.Linear(16, 1))

    def forward(self, x):
        x = x.clone().requires_grad_()
        value = self.critic(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value.mean() + (slope.norm(dim=1) - 1).square().mean()


# -- reinforcement learning --------------------------------------------------------------------------


@more(floats(16, 8), integers(4, 16), floats(16), floats(16), floats(16))
class ProximalPolicy(nn.Module):
    """Clipped ratio, clipped value, entropy (PPO)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor, self.critic = mlp(8, 16, 16), nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, seen, action, old, gain, target):
        h = torch.tanh(self.body(seen))
        choice = torch.distributions.Categorical(logits=self.actor(h))
        ratio = (choice.log_prob(action) - old).exp()
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        loss = -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        return loss + 0.5 * F.mse_loss(self.critic(h).squeeze(-1), target) - 0.01 * choice.entropy().mean()


@more(floats(16, 8), integers(3, 16), floats(16), floats(16, 8))
class DeepQ(nn.Module):
    """Double Q-learning with a target network and a dueling head."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.target = mlp(8, 16, 4), mlp(8, 16, 4).requires_grad_(False)

    def values(self, net, x):
        value, gain = net(x).split([1, 3], -1)
        return value + gain - gain.mean(-1, keepdim=True)

    def forward(self, seen, action, reward, following):
        now = self.values(self.net, seen).gather(1, action[:, None]).squeeze(1)
        with torch.no_grad():
            best = self.values(self.net, following).argmax(1, keepdim=True)
            later = self.values(self.target, following).gather(1, best).squeeze(1)
        return F.smooth_l1_loss(now, reward + 0.99 * later)


@more(floats(16, 6))
class SoftActor(nn.Module):
    """A squashed Gaussian policy against the smaller of two critics (SAC)."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.first, self.second = mlp(6, 16, 4), mlp(8, 16, 1), mlp(8, 16, 1)

    def forward(self, seen):
        mean, spread = self.actor(seen).chunk(2, -1)
        policy = torch.distributions.Normal(mean, spread.clamp(-5, 2).exp())
        raw = policy.rsample()
        action = torch.tanh(raw)
        chance = (policy.log_prob(raw) - torch.log(1 - action.pow(2) + 1e-6)).sum(-1)
        both = torch.cat([seen, action], -1)
        return (0.2 * chance - torch.min(self.first(both), self.second(both)).squeeze(-1)).mean()


# -- preferences and distillation --------------------------------------------------------------------


class Language(nn.Module):
    """A language model of one block, with rotary positions, grouped heads, RMS norm and a gated MLP."""

    def __init__(self, vocabulary: int = 24) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(vocabulary, 16), nn.Linear(16, vocabulary, bias=False)
        self.q, self.kv, self.o = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False), nn.Linear(16, 16)
        self.norm, self.gate, self.down = nn.RMSNorm(16), nn.Linear(16, 48, bias=False), nn.Linear(24, 16, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        h, (batch, length) = self.norm(x), tokens.shape
        angles = torch.outer(torch.arange(length).float(), torch.tensor([1.0, 0.1]))
        turn = torch.cat([angles, angles], -1)
        q = self.q(h).view(batch, length, 4, 4).transpose(1, 2)
        k, v = self.kv(h).view(batch, length, 2, 2, 4).permute(2, 0, 3, 1, 4).repeat_interleave(2, 2)
        q, k = (t * turn.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * turn.sin() for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, 16))
        a, b = self.gate(self.norm(x)).chunk(2, -1)
        return self.out(x + self.down(F.silu(a) * b))


def chances(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of each next token."""
    return scores[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)


@more(integers(24, 3, 7))
class RotaryLanguage(Language):
    def forward(self, tokens):
        return F.cross_entropy(super().forward(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Preferences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy, self.reference = Language(), Language().requires_grad_(False)

    def ratio(self, tokens):
        with torch.no_grad():
            before = chances(self.reference(tokens), tokens)
        return (chances(self.policy(tokens), tokens) - before).sum(-1)


@more(integers(24, 2, 7), integers(24, 2, 7))
class DirectPreference(Preferences):
    """Chosen and rejected answers against a frozen reference (DPO)."""

    def forward(self, chosen, rejected):
        both = self.ratio(torch.cat([chosen, rejected]))
        return -F.logsigmoid(0.1 * (both[:2] - both[2:])).mean()


@more(integers(24, 4, 7), floats(4))
class GroupRelative(Preferences):
    """Rewards relative to their group, with a penalty of divergence for each token (GRPO)."""

    def forward(self, tokens, reward):
        now = chances(self.policy(tokens), tokens)
        with torch.no_grad():
            before = chances(self.reference(tokens), tokens)
        gain = ((reward - reward.mean()) / (reward.std() + 1e-4))[:, None]
        apart = (before - now).exp() - (before - now) - 1
        mask = (tokens[:, 1:] != 0).float()
        return ((-(now - now.detach()).exp() * gain + 0.04 * apart) * mask).sum() / mask.sum()


@more(integers(24, 2, 7), integers(24, 2, 7))
class RewardModel(nn.Module):
    """A scalar head at the last token, trained on pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Language(), nn.Linear(24, 1)

    def forward(self, chosen, rejected):
        better, worse = (self.head(self.body(tokens))[:, -1, 0] for tokens in (chosen, rejected))
        return -F.logsigmoid(better - worse).mean()


@more(integers(24, 3, 7))
class Distilled(Preferences):
    """A student learns the teacher's softened scores."""

    def forward(self, tokens):
        with torch.no_grad():
            taught = (self.reference(tokens) / 2).log_softmax(-1)
        return 4 * F.kl_div((self.policy(tokens) / 2).log_softmax(-1), taught, reduction="batchmean", log_target=True)


class LowRank(nn.Module):
    """A frozen layer and a product of two narrow ones beside it (LoRA)."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.layer, self.dropout = layer.requires_grad_(False), nn.Dropout(0.1)
        self.a, self.b = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + 2 * self.b(self.a(self.dropout(x)))


@more(integers(24, 3, 7))
class Adapted(RotaryLanguage):
    """All of it frozen but what LoRA adds, and one layer that is kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.q, self.kv, self.gate = LowRank(self.q), LowRank(self.kv), LowRank(self.gate)
        self.norm.requires_grad_(True)


@more(integers(24, 3, 7))
class Prompted(RotaryLanguage):
    """Virtual tokens before a frozen model (prompt tuning)."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.prompt = nn.Parameter(torch.randn(4, 16))

    def forward(self, tokens):
        x = torch.cat([self.prompt.expand(len(tokens), -1, -1), self.embed(tokens)], 1)
        return F.cross_entropy(self.out(self.norm(x))[:, 4:].flatten(0, 1), tokens.flatten())


# -- contrast ----------------------------------------------------------------------------------------


@more(floats(6, 12), integers(20, 6, 5))
class TwoTowers(nn.Module):
    """Images and texts, normalized, all against all with a learned temperature (CLIP)."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = mlp(12, 16, 8), nn.EmbeddingBag(20, 8, mode="sum")
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image, text):
        a, b = (F.normalize(t, dim=-1) for t in (self.image(image), self.text(text)))
        scores = self.scale.exp() * a @ b.t()
        target = torch.arange(len(a))
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.t(), target)) / 2


@more(floats(6, 12), floats(6, 12), floats(6, 12))
class Triplets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12, 16, 8)

    def forward(self, a, b, c):
        a, b, c = self.net(a), self.net(b), self.net(c)
        together = F.cosine_embedding_loss(a, b, torch.ones(len(a)))
        return F.triplet_margin_loss(a, b, c) + together + F.soft_margin_loss(a, c.detach().sign())


@more(floats(6, 12), floats(6, 12))
class Redundancy(nn.Module):
    """The correlation of two views shall be the identity (Barlow twins), batch norm without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = mlp(12, 16, 8), nn.BatchNorm1d(8, affine=False)

    def forward(self, x, y):
        c = self.norm(self.net(x)).t() @ self.norm(self.net(y)) / len(x)
        on = torch.diagonal(c).add_(-1).pow_(2).sum()
        return on + 0.005 * c.flatten()[:-1].view(7, 9)[:, 1:].pow(2).sum()


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


@more(floats(3, 16, 4))
class LongConvolution(nn.Module):
    """A convolution as long as the sequence, by Fourier transform (Hyena)."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.kernel = nn.Linear(4, 8), nn.Parameter(torch.randn(16, 4))

    def forward(self, x):
        value, gate = self.project(x).chunk(2, -1)
        spectrum = torch.fft.rfft(value, 32, dim=1) * torch.fft.rfft(self.kernel, 32, dim=0)
        return (torch.fft.irfft(spectrum, 32, dim=1)[:, :16] * gate).square().mean()


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


# -- tables ------------------------------------------------------------------------------------------


@more(integers(30, 8, 4), floats(8, 5), integers(2, 8))
class Factorization(nn.Module):
    """Fields of categories, their products in pairs, a deep part and a wide one (DeepFM)."""

    def __init__(self) -> None:
        super().__init__()
        self.fields, self.linear = nn.Embedding(30, 6), nn.EmbeddingBag(30, 1, mode="mean")
        self.deep = nn.Sequential(nn.Linear(29, 16), nn.PReLU(), nn.Dropout(0.1), nn.Linear(16, 1))

    def forward(self, categories, numbers, clicked):
        fields = self.fields(categories)
        pairs = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(-1, keepdim=True)
        score = pairs + self.linear(categories) + self.deep(torch.cat([fields.flatten(1), numbers], -1))
        return F.binary_cross_entropy_with_logits(score.squeeze(1), clicked.float())


@more(floats(8, 5))
class Anomaly(nn.Module):
    """Gumbel softmax chooses prototypes, an error decides."""

    def __init__(self) -> None:
        super().__init__()
        self.choose, self.prototypes = nn.Linear(5, 4), nn.Parameter(torch.randn(4, 5))

    def forward(self, x):
        chosen = F.gumbel_softmax(self.choose(x), tau=0.5, hard=True)
        return (chosen @ self.prototypes - x).norm(dim=1).mean()


def residual_mlp() -> Case:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.BatchNorm1d(16), nn.CELU(), nn.Linear(16, 16))

        def forward(self, x):
            return x + self.body(x)

    return Loss(nn.Sequential(nn.Linear(8, 16), Block(), Block(), nn.Linear(16, 10))), [torch.randn(4, 8), classes()]


MORE["ResidualTable"] = residual_mlp
