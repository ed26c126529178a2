"""Small models of how one learns: generative, reinforced, by preferences, by contrast; entered in `MORE`."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from architectures import Case, Loss, classes
from architectures_more import MORE, floats, integers, mlp, more
from torch import nn

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
