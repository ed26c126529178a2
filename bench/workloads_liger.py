"""Workloads of Liger-Kernel's published memory benchmarks, for the provider that is plain PyTorch or transformers.

Each is a generator: what runs before the first ``yield`` prepares, every ``next`` is one measured call. Names stay
bound between calls as they do in those scripts (benchmark/scripts/benchmark_*.py in linkedin/Liger-Kernel): a
gradient is added to the one of the call before, and a module of Liger's own that a script makes beside the plain one
stands here as a twin of the same parameters. Everything is on "cuda": captured on any machine, or run on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Config = dict[str, str]
Calls = Iterator[None]
CUDA = "cuda"


def parse(config: str) -> Config:
    """Return what a row says of its workload, by name: ``full V=4096 B=8,T=2048``."""
    mode, _, rest = config.partition(" ")
    pairs = (part.partition("=") for part in rest.replace(" ", ",").split(","))
    return {name: value for name, _, value in pairs} | {"pass": mode}


def _dtype(config: Config) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, config["dtype"].removeprefix("torch."))
    return dtype


def _passes(forward: Callable[[], Any], config: Config, grad: Any = None, leaves: Sequence[Any] = ()) -> Calls:
    """One pass, or both, of *forward*; the gradient is *grad*, or a random one made in each call of both."""
    if config["pass"] == "forward":
        _both(forward, grad)  # in the same process, before: cuBLAS's workspace of backward is there
        for tensor in leaves:
            tensor.grad = None
        yield from _again(forward)
    if config["pass"] == "backward":
        y = forward()
        grad = torch.randn_like(y) if grad is None else grad
        while True:
            y.backward(grad, retain_graph=True)
            yield
    while True:
        _both(forward, grad)
        yield


def _again(call: Callable[[], Any]) -> Calls:
    while True:
        call()
        yield


def _both(forward: Callable[[], Any], grad: Any) -> None:
    y = forward()
    y.backward(torch.randn_like(y) if grad is None else grad, retain_graph=True)


def _losses(forward: Callable[[], Any], *, retain: bool = True) -> Calls:
    def both() -> None:
        loss = forward()
        loss.backward(retain_graph=retain)

    yield from _again(both)


# -- losses ----------------------------------------------------------------------------------------


def cross_entropy(config: Config) -> Calls:
    rows, classes = int(config["B"]) * int(config["T"]), int(config["V"])
    logits = torch.randn(rows, classes, requires_grad=True, device=CUDA)
    target = torch.randint(classes, (rows, 1), device=CUDA).squeeze(1)
    yield from _losses(lambda: functional.cross_entropy(logits, target), retain=False)


def fused_linear_cross_entropy(config: Config) -> Calls:
    rows, width, classes, dtype = int(config["BT"]), int(config["H"]), int(config["V"]), _dtype(config)
    x = torch.randn(rows, width, requires_grad=True, dtype=dtype, device=CUDA)
    target = torch.randint(classes, (rows, 1), device=CUDA).squeeze(1)
    head, twin = (nn.Linear(width, classes, bias=False, dtype=dtype, device=CUDA) for _ in range(2))

    def loss() -> Any:
        logits = head(x)
        return functional.cross_entropy(logits, target)

    yield from _losses(loss, retain=False)
    del twin


def kl_div(config: Config) -> Calls:
    rows, classes = int(config["B"]) * int(config["T"]), int(config["V"])
    x = torch.randn(rows, classes, requires_grad=True, device=CUDA).log_softmax(-1)
    target = torch.randn(rows, classes, device=CUDA).softmax(-1)
    loss = nn.KLDivLoss(reduction="batchmean")
    yield from _losses(lambda: loss(x, target))


def tvd(config: Config) -> Calls:
    rows, classes = int(config["B"]) * int(config["T"]), int(config["V"])
    p = torch.randn(rows, classes, requires_grad=True, device=CUDA).softmax(-1)
    q = torch.randn(rows, classes, device=CUDA).softmax(-1)

    def distance() -> Any:
        halves = torch.abs(p - q) / 2.0
        return torch.sum(halves) / p.size(0)

    yield from _losses(distance)


class _JensenShannon(nn.Module):
    """The divergence as the scripts' plain module computes it; its locals live until it returns."""

    def __init__(self, dtype: torch.dtype = torch.float) -> None:
        super().__init__()
        self.kl = nn.KLDivLoss(reduction="none", log_target=True)
        self.dtype = dtype

    def forward(self, log_q: Any, log_p: Any) -> Any:
        log_p, log_q = log_p.to(torch.float), log_q.to(torch.float)
        log_p, log_q = log_p.view(-1, log_p.size(-1)), log_q.view(-1, log_q.size(-1))
        m = torch.lerp(torch.exp(log_q), torch.exp(log_p), 0.5)
        loss = 0.5 * self.kl(torch.log(m), log_p).sum(dim=-1) + 0.5 * self.kl(torch.log(m), log_q).sum(dim=-1)
        return (loss / log_q.shape[0]).sum().to(self.dtype)


def jsd(config: Config) -> Calls:
    rows = int(config["BT"]) if "BT" in config else int(config["B"]) * int(config["T"])
    classes = int(config.get("V") or config["vocab_size"])
    x = torch.randn(rows, classes, requires_grad=True, device=CUDA).log_softmax(-1)
    target = torch.randn(rows, classes, device=CUDA).log_softmax(-1)
    loss = _JensenShannon()
    yield from _losses(lambda: loss(x, target))


class _HeadJensenShannon(nn.Module):
    """Both heads, and the divergence of what they say."""

    def __init__(self, width: int, classes: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.student = nn.Linear(width, classes, bias=False, dtype=dtype, device=CUDA)
        self.teacher = nn.Linear(width, classes, bias=False, dtype=dtype, device=CUDA)
        self.loss = _JensenShannon(dtype)

    def forward(self, student: Any, teacher: Any) -> Any:
        student_logits = self.student(student)
        teacher_logits = self.teacher(teacher)
        student_prob = torch.log_softmax(student_logits / 1.0, dim=-1)
        teacher_prob = torch.log_softmax(teacher_logits / 1.0, dim=-1)
        return self.loss(student_prob, teacher_prob)


def fused_linear_jsd(config: Config) -> Calls:
    rows, width, classes, dtype = int(config["BT"]), int(config["H"]), int(config["V"]), _dtype(config)
    heads = _HeadJensenShannon(width, classes, dtype)
    student = torch.rand(rows, width, requires_grad=True, dtype=dtype, device=CUDA)
    teacher = torch.rand(rows, width, dtype=dtype, device=CUDA)
    yield from _losses(lambda: heads(student, teacher), retain=False)


# -- normalization ---------------------------------------------------------------------------------


def layer_norm(config: Config) -> Calls:
    rows, width = int(config["M"]), int(config["N"])
    norm, twin = nn.LayerNorm(width, device=CUDA), nn.LayerNorm(width, device=CUDA)
    x = torch.randn(rows, width, device=CUDA)
    grad = torch.randn_like(x)
    x.requires_grad_(True)
    yield from _passes(lambda: norm(x), config, grad)
    del twin


class _RootMeanSquare(nn.Module):
    """Llama's, written out; given a residual, it normalizes the sum and returns it too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, device=CUDA))

    def forward(self, hidden: Any, residual: Any = None) -> Any:
        dtype = hidden.dtype
        hidden = hidden.to(torch.float32)
        if residual is not None:
            residual = residual.to(torch.float32)
            hidden = hidden + residual
            residual = hidden
        variance = hidden.pow(2).mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(variance + 1e-6)
        y = self.weight * hidden.to(dtype)
        return y if residual is None else (y, residual.to(dtype))


def rms_norm(config: Config) -> Calls:
    rows, width = int(config["M"]), int(config["H"])
    norm, twin = _RootMeanSquare(width), _RootMeanSquare(width)
    x = torch.randn(rows, width, dtype=_dtype(config), device=CUDA)
    grad = torch.randn_like(x)
    x.requires_grad_(True)
    yield from _passes(lambda: norm(x), config, grad)
    del twin


def fused_add_rms_norm(config: Config) -> Calls:
    rows, width = int(config["M"]), int(config["H"])
    norm, *_twins = [_RootMeanSquare(width) for _ in range(4)]  # one of Liger's modules has two of them
    x, residual = (torch.randn(rows, width, dtype=_dtype(config), device=CUDA) for _ in range(2))
    grads = torch.randn_like(x), torch.randn_like(residual)
    x.requires_grad_(True)
    residual.requires_grad_(True)

    def full() -> None:
        y, total = norm(x, residual)
        torch.autograd.backward((y, total), grads)

    yield from _again(full)


def megatron_rms_norm(config: Config) -> Calls:
    width = int(config["H"])
    norm = nn.RMSNorm(width, eps=1e-6).to(CUDA).to(torch.bfloat16)
    shape = int(config["S"]), int(config["B"]), width
    x = torch.randn(shape, device=CUDA, dtype=torch.bfloat16, requires_grad=True)

    def full() -> None:
        y = norm(x)
        y.sum().backward()

    yield from _again(full)


def group_norm(config: Config) -> Calls:
    channels = int(config["C"])
    groups = channels // int(config["channels_per_group"])
    x = torch.randn(int(config["M"]), channels, int(config["H"]), device=CUDA, requires_grad=True)
    norm, twin = nn.GroupNorm(groups, channels, device=CUDA), nn.GroupNorm(groups, channels, device=CUDA)
    yield from _passes(lambda: norm(x), config | {"pass": "full"})  # the script measures both passes whatever it says
    del twin


# -- layers ----------------------------------------------------------------------------------------


def gated(config: Config) -> Calls:
    """swiglu, geglu, and their tiled relatives: transformers' LlamaMLP."""
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    llama = LlamaConfig(hidden_size=width, intermediate_size=inner, hidden_act=config["hidden_act"])
    shape = int(config.get("B") or config["bsz"]), int(config["T"]), width
    x = torch.randn(shape, device=CUDA, dtype=_dtype(config), requires_grad=True)
    layer = LlamaMLP(config=llama).to(CUDA).to(_dtype(config))
    yield from _passes(lambda: layer(x), config, leaves=(x, *layer.parameters()))


def megatron_swiglu(config: Config) -> Calls:
    shape = int(config["S"]), int(config["B"]), 2 * int(config["ffn_local"])
    x = torch.randn(shape, device=CUDA, dtype=torch.bfloat16, requires_grad=True)

    def forward(y: Any) -> Any:
        gate, up = torch.chunk(y, 2, -1)
        return functional.silu(gate) * up

    def full() -> None:
        x.grad = None
        y = forward(x)
        y.sum().backward()

    yield from _again(full)


def embedding(config: Config) -> Calls:
    rows, width = int(config["V"]), int(config["D"])
    ids = torch.randint(0, rows, (int(config["B"]), int(config["T"])), device=CUDA)
    table, twin = nn.Embedding(rows, width, device=CUDA), nn.Embedding(rows, width, device=CUDA)
    yield from _passes(lambda: table(ids), config)
    del twin


class NeighborhoodAttention(nn.Module):
    """Attention to the neighbours, by a mask over all scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, 1.0 / math.sqrt(width // heads)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, device=CUDA) for _ in range(4))

    def forward(self, hidden: Any) -> Any:
        batch, length, width = hidden.shape
        query, key, value = self.q(hidden), self.k(hidden), self.v(hidden)
        query = query.view(batch, length, self.heads, -1).transpose(1, 2)
        key = key.view(batch, length, self.heads, -1).transpose(1, 2)
        value = value.view(batch, length, self.heads, -1).transpose(1, 2)
        scores = torch.matmul(query, key.transpose(-2, -1)) * self.scale
        mask = torch.zeros(length, length, device=CUDA, dtype=torch.bool)  # filled element by element, in place
        scores = scores.masked_fill(~mask, float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        y = torch.matmul(weights, value)
        y = y.transpose(1, 2).contiguous().view(batch, length, width)
        return self.out(y)


def fused_neighborhood_attention(config: Config) -> Calls:
    width, heads = int(config["hidden_size"]), int(config["num_heads"])
    twin, attention = NeighborhoodAttention(width, heads), NeighborhoodAttention(width, heads)
    shape = int(config["batch_size"]), int(config["seq_len"]), width
    x = torch.randn(shape, dtype=_dtype(config), device=CUDA, requires_grad=True)
    grad = torch.randn_like(x)
    yield from _passes(lambda: attention(x), config, grad)
    del twin


def multi_token_attention(config: Config) -> Calls:
    length, channels, kernel, dtype = int(config["L"]), int(config["C_in"]), int(config["K"]), _dtype(config)
    outer = int(config["C_out"])
    weight, twin_weight = (
        nn.Parameter(torch.empty(outer, channels, kernel, kernel, dtype=dtype, device=CUDA)) for _ in range(2)
    )
    bias, twin_bias = (nn.Parameter(torch.empty(outer, dtype=dtype, device=CUDA)) for _ in range(2))
    x = torch.randn(int(config["B"]), channels, length, length, dtype=dtype, device=CUDA)
    grad = torch.randn_like(x)
    x.requires_grad_(True)

    def forward() -> Any:
        mask = torch.tril(torch.ones(length, length, dtype=torch.bool, device=CUDA)).view(1, 1, length, length)
        low = torch.tensor(-1e9, device=CUDA, dtype=dtype)
        zero = torch.tensor(0.0, device=CUDA, dtype=dtype)
        masked = x.masked_fill(~mask, low)
        probabilities = functional.softmax(masked, dim=-1)
        y = functional.conv2d(probabilities, weight, bias, padding=kernel // 2)
        return y.masked_fill(~mask, zero)

    yield from _passes(forward, config, grad)
    del twin_weight, twin_bias


# -- rotary embeddings -----------------------------------------------------------------------------


def _heads(config: Config, transposed: bool) -> tuple[int, int, Any, Any]:
    """Return (head width, length, queries, keys)."""
    length, width = int(config.get("seq_len") or config["T"]), int(config.get("hidden_size") or config["H"])
    queries, keys = int(config["num_q_heads"]), int(config["num_kv_heads"])
    head = width // queries
    q, k = (
        torch.randn((1, length, count, head), device=CUDA, requires_grad=True, dtype=_dtype(config))
        for count in (queries, keys)
    )
    return (head, length, q.transpose(1, 2), k.transpose(1, 2)) if transposed else (head, length, q, k)


def _rotations(forward: Callable[[], Any], q: Any, k: Any, grads: Any) -> Calls:
    torch.mm(torch.ones(1, 1, device=CUDA), torch.ones(1, 1, device=CUDA))  # positions, in older transformers

    def full() -> None:
        rotated = forward()
        torch.autograd.grad(rotated, (q, k), grads, allow_unused=True, retain_graph=True)

    yield from _again(full)


def rope(config: Config) -> Calls:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    head, length, q, k = _heads(config, transposed=True)
    llama = LlamaConfig(num_key_value_heads=int(config["num_kv_heads"]), head_dim=head)
    rotary = LlamaRotaryEmbedding(config=llama).to(CUDA)
    grads = torch.randn_like(q), torch.randn_like(k)
    positions = torch.arange(length, device=CUDA).unsqueeze(0)
    cosine, sine = rotary(k, positions)
    yield from _rotations(lambda: apply_rotary_pos_emb(q, k, cosine, sine), q, k, grads)


def llama4_rope(config: Config) -> Calls:
    from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding, apply_rotary_emb

    head, length, q, k = _heads(config, transposed=False)
    llama = Llama4TextConfig(
        hidden_size=head * int(config["num_q_heads"]),
        num_attention_heads=int(config["num_q_heads"]),
        num_key_value_heads=int(config["num_kv_heads"]),
        head_dim=head,
        max_position_embeddings=length,
    )
    rotary = Llama4TextRotaryEmbedding(config=llama).to(CUDA)
    grads = torch.randn_like(q), torch.randn_like(k)
    positions = torch.arange(length, device=CUDA).unsqueeze(0)
    frequencies = rotary(q, positions)
    yield from _rotations(lambda: apply_rotary_emb(q, k, frequencies), q, k, grads)


WORKLOADS: dict[str, Callable[[Config], Calls]] = {
    "cross_entropy": cross_entropy,
    "fused_linear_cross_entropy": fused_linear_cross_entropy,
    "kl_div": kl_div,
    "tvd": tvd,
    "jsd": jsd,
    "fused_linear_jsd": fused_linear_jsd,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "fused_add_rms_norm": fused_add_rms_norm,
    "megatron_rms_norm": megatron_rms_norm,
    "group_norm": group_norm,
    "swiglu": gated,
    "geglu": gated,
    "tiled_swiglu": gated,
    "tiled_geglu": gated,
    "megatron_swiglu": megatron_swiglu,
    "embedding": embedding,
    "fused_neighborhood_attention": fused_neighborhood_attention,
    "multi_token_attention": multi_token_attention,
    "rope": rope,
    "llama4_rope": llama4_rope,
}
"""By the name of the kernel in the rows."""
