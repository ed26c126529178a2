"""Optimizers that torch has not, with the kernels of their published implementations in the same order."""

from __future__ import annotations

import torch


class Lion(torch.optim.Optimizer):
    """lion-pytorch 0.2.5, lion_pytorch/lion_pytorch.py."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self):
        for param in self.param_groups[0]["params"]:
            state = self.state[param]
            if not state:
                state["exp_avg"] = torch.zeros_like(param)
            self._update(param, param.grad, state["exp_avg"])

    @staticmethod
    def _update(param, grad, exp_avg):
        param.data.mul_(1.0)
        update = exp_avg.clone().mul_(0.9).add(grad, alpha=0.1).sgn_()
        param.add_(update, alpha=-0.1)
        exp_avg.mul_(0.99).add_(grad, alpha=0.01)


class Adam8bit(torch.optim.Optimizer):
    """bitsandbytes 0.50.2 on the CPU: bitsandbytes/optim/optimizer.py and backends/cpu/ops.py.

    Quantization, which is C++ there, only allocates what that allocates.
    """

    def __init__(self, params):
        super().__init__(params, {})
        self.codes = torch.zeros(256), torch.zeros(256)

    @torch.no_grad()
    def step(self):
        for param in self.param_groups[0]["params"]:
            state = self.state[param]
            quantized = param.numel() >= 4096
            if not state:
                for i in "12":
                    state["state" + i] = torch.zeros_like(param, dtype=torch.uint8 if quantized else torch.float32)
                if quantized:
                    for i in "12":
                        state["absmax" + i] = torch.zeros(-(-param.numel() // 256))
            (self._update_8bit if quantized else self._update_32bit)(param.grad, param, **state)

    def _update_8bit(self, grad, param, state1, state2, absmax1, absmax2):
        state1_fp32 = torch.empty_like(state1, dtype=torch.float32)
        state2_fp32 = torch.empty_like(state2, dtype=torch.float32)
        grad = grad.float() * 1.0
        p_fp32 = param.data.float()
        state1_fp32.mul_(0.9).add_(grad, alpha=0.1)
        state2_fp32.mul_(0.999).addcmul_(grad, grad, value=0.001)
        denom = (state2_fp32.sqrt() / 0.1).add_(1e-8)
        p_fp32.addcdiv_(state1_fp32, denom, value=-0.1)
        param.data.copy_(p_fp32)
        self._quantize(state1, absmax1)
        self._quantize(state2, absmax2)

    @staticmethod
    def _quantize(values, scales):
        absmax, out = torch.empty_like(scales), torch.empty_like(values)
        values.copy_(out)
        scales.copy_(absmax)

    @staticmethod
    def _update_32bit(grad, param, state1, state2):
        g_float = grad.float() * 1.0
        p_float = param.data.float()
        state1.mul_(0.9).add_(g_float, alpha=0.1)
        state2.mul_(0.999).addcmul_(g_float, g_float, value=0.001)
        update = state1 / (state2.sqrt() + 1e-8)
        p_float.add_(update, alpha=-0.1)
        param.data.copy_(p_float)
