"""Attention: the kernel that runs, what it saves and its scratch memory, against torch."""

from __future__ import annotations

import pytest
from oracle import assert_close

import graphsim as gs
from graphsim.errors import SpecError
from graphsim.sources.spec import parse_spec

torch = pytest.importorskip("torch")
nn = torch.nn


class Attention(nn.Module):
    """Projections, torch's scaled_dot_product_attention over heads, and back."""

    def __init__(self, width: int, heads: int, kv_heads: int, p: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.p, self.causal = heads, kv_heads, p, causal
        head = width // heads
        self.q, self.k, self.v = (nn.Linear(width, h * head) for h in (heads, kv_heads, kv_heads))

    def split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.split(self.q(x), self.heads)
        k = self.split(self.k(x), self.kv_heads)
        v = self.split(self.v(x), self.kv_heads)
        y = nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=self.p,
            is_causal=self.causal,
            enable_gqa=self.kv_heads != self.heads,
        )
        return y.transpose(1, 2).contiguous().view(x.shape)


def spec(batch: int, seq: int, width: int, attributes: str, kv_width: int = 0) -> str:
    return f"""
    [inputs]
    x = {{ shape = [{batch}, {seq}, {width}] }}
    y = {{ shape = [{batch}, {seq}, {width}] }}
    [model]
    layers = [
      {{ op = "linear", out = {width}, name = "q" }},
      {{ op = "linear", out = {kv_width or width}, from = "x", name = "k" }},
      {{ op = "linear", out = {kv_width or width}, from = "x", name = "v" }},
      {{ op = "attention", from = "q", with = ["k", "v"], heads = 4, {attributes}, name = "attn" }},
      {{ op = "mse", with = "y" }},
    ]
    """


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize(("batch", "seq"), [(1, 40), (3, 20), (2, 200), (1, 800)])
def test_sdpa_on_the_cpu_allocates_what_torch_allocates(batch, seq, p, causal):
    net, x, y = Attention(64, 4, 4, p, causal), torch.randn(batch, seq, 64), torch.randn(batch, seq, 64)
    text = spec(batch, seq, 64, f"p = {p}, causal = {str(causal).lower()}")
    assert_close(lambda: nn.functional.mse_loss(net(x), y), text)


def test_grouped_queries_share_keys_without_copies_in_the_flash_kernel():
    net, x, y = Attention(64, 4, 2, 0.0, True), torch.randn(2, 64, 64), torch.randn(2, 64, 64)
    text = spec(2, 64, 64, "kv_heads = 2, causal = true", kv_width=32)
    assert_close(lambda: nn.functional.mse_loss(net(x), y), text)


def kinds(target: str, **options: object) -> set[str]:
    text = spec(2, 64, 64, "p = 0.1, causal = true")
    step = gs.training_step(parse_spec(text), optimizer="sgd", target=target, **options)
    return {op.kind for op in step.ops}


def test_cuda_runs_flash_in_16_bit_on_ampere_and_memory_efficient_elsewhere():
    assert "flash_attention" in kinds("cuda", precision="amp-bf16", device="a100-80g")
    assert "efficient_attention" in kinds("cuda", precision="amp-fp16", device="t4")
    assert "efficient_attention" in kinds("cuda", precision="fp32", device="a100-80g")
    assert "softmax" in kinds("cpu")


def test_a_fused_kernel_never_makes_the_matrix_of_scores():
    text = spec(1, 512, 64, "causal = true, kernel = KERNEL")
    peaks = {
        kernel: gs.simulate(gs.training_step(parse_spec(text.replace("KERNEL", f'"{kernel}"')), optimizer="sgd")).peak
        for kernel in ("flash", "efficient", "math", "eager")
    }
    assert max(peaks["flash"], peaks["efficient"]) + 4 * 512 * 512 * 4 < min(peaks["math"], peaks["eager"])


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ("kv_heads = 3", "kv_heads"),
        ('kernel = "fast"', "kernel"),
        ("p = 2.0", "0 ... 1"),
    ],
)
def test_what_does_not_fit_is_named(attributes, words):
    with pytest.raises(SpecError, match=words):
        parse_spec(spec(2, 8, 64, attributes))
