"""RMS norm in torch's and in the model libraries' own form, against both."""

from __future__ import annotations

import pytest
from oracle import assert_close, measure

import graphsim as gs
from graphsim.errors import SpecError
from graphsim.sources.spec import parse_spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
nn = torch.nn

RESIDENT = (gs.Role.PARAMETER, gs.Role.INPUT)

SPEC = """
[inputs]
x = {{ shape = [4, 10, 48] }}
y = {{ shape = [4, 10, 48] }}
[model]
layers = [
  {{ op = "linear", out = 48, bias = false }},
  {{ op = "rms_norm", impl = "{impl}", name = "norm" }},
  {{ op = "linear", out = 48, bias = false }},
  {{ op = "mse", with = "y" }},
]
"""


def module(impl: str) -> nn.Module:
    if impl == "torch":
        return nn.RMSNorm(48)
    if impl == "hf":
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        return LlamaRMSNorm(48)
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    return T5LayerNorm(48)


@pytest.mark.parametrize("impl", ["torch", "hf", "t5"])
def test_rms_norm_allocates_what_its_implementation_allocates(impl):
    net = nn.Sequential(nn.Linear(48, 48, bias=False), module(impl), nn.Linear(48, 48, bias=False))
    x, y = torch.randn(4, 10, 48), torch.randn(4, 10, 48)
    assert_close(lambda: nn.functional.mse_loss(net(x), y), SPEC.format(impl=impl), within=16)


@pytest.mark.parametrize("impl", ["hf", "t5"])
def test_in_bf16_the_casts_to_fp32_and_back_are_tensors_too(impl):
    net = nn.Sequential(nn.Linear(48, 48, bias=False), module(impl), nn.Linear(48, 48, bias=False)).bfloat16()
    x, y = torch.randn(4, 10, 48, dtype=torch.bfloat16), torch.randn(4, 10, 48, dtype=torch.bfloat16)
    nn.functional.mse_loss(net(x), y).backward()
    net.zero_grad()
    measured = measure(lambda: nn.functional.mse_loss(net(x), y))
    step = gs.training_step(parse_spec(SPEC.format(impl=impl)), precision="bf16", optimizer="sgd", target="cpu")
    resident = sum(t.nbytes for t in step.tensors.values() if not t.storage and t.role in RESIDENT)
    assert abs(gs.simulate(step).phase_end_bytes(gs.Phase.FORWARD) - resident - measured.forward_end) < 64


def test_on_cuda_torchs_is_one_kernel_that_saves_its_input_and_a_number_per_row():
    step = gs.training_step(parse_spec(SPEC.format(impl="torch")), optimizer="sgd", target="cuda")
    (forward,) = (op for op in step.ops if op.kind == "rms_norm")
    assert [step.tensors[name].shape for name in forward.outputs] == [(4, 10, 48), (4, 10, 1)]
    (backward,) = (op for op in step.ops if op.kind == "rms_norm_backward")
    assert forward.outputs[1] in backward.inputs


def test_an_unknown_implementation_is_named():
    with pytest.raises(SpecError, match=r"norm: 'impl' cannot be 'apex'"):
        parse_spec(SPEC.format(impl="apex"))
