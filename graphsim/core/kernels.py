"""What dominates a kernel: the class of each kind of op, stated once.

The roofline, measured arithmetic, selective recompute and the min-cut partitioner read it. Kinds are those of our own
lowering, of captured PyTorch ops (``aten`` names), and of graphs from files: a kind is all that a graph has to carry. A
kernel that is not declared makes one pass over its bytes.

Other packages declare theirs by an entry point of group ``graphsim.kernels``: its name is the kind, its value a class,
for instance ``fused_mlp = "graphsim.core.kernels:PRODUCT"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cache


class Kernel(StrEnum):
    """The class of a kernel."""

    PRODUCT = "matrix product"
    BATCHED = "batched matrix product"
    CONVOLUTION = "convolution"
    RECURRENT = "recurrent layer"
    ATTENTION = "attention"
    REDUCTION = "reduction"
    ELEMENTWISE = "elementwise"

    @property
    def multiplies(self) -> bool:
        """Whether nearly all of its arithmetic is products of matrices, for which GPUs have units of their own."""
        return self not in (Kernel.REDUCTION, Kernel.ELEMENTWISE)

    @property
    def in_cudnn(self) -> bool:
        """Whether cuDNN runs it, which by PyTorch's default multiplies fp32 as TF32."""
        return self in (Kernel.CONVOLUTION, Kernel.RECURRENT)


PRODUCT, BATCHED, CONVOLUTION, RECURRENT, ATTENTION, REDUCTION, ELEMENTWISE = Kernel

_FORWARD = {
    PRODUCT: "mm addmm int_mm scaled_mm grouped_mm scaled_grouped_mm linear",
    BATCHED: "bmm baddbmm addbmm matmul",
    REDUCTION: "sum mean nll_loss histc cumsum sort topk",
}
"""Kernels whose backward is made of other kernels, or spreads where they reduce."""

_BOTH_WAYS = {
    PRODUCT: "linear_cross_entropy",
    CONVOLUTION: """
        convolution convolution_overrideable cudnn_convolution conv_transpose slow_conv2d_forward conv_depthwise2d
        conv_depthwise3d slow_conv3d_forward slow_conv_transpose2d slow_conv_transpose3d
    """,
    RECURRENT: "lstm_layer mkldnn_rnn_layer cudnn_rnn lstm gru",
    ATTENTION: """
        flash_attention efficient_attention cudnn_attention flex_attention
        scaled_dot_product_attention scaled_dot_product_flash_attention scaled_dot_product_flash_attention_for_cpu
        scaled_dot_product_efficient_attention scaled_dot_product_cudnn_attention
        scaled_dot_product_fused_attention_overrideable
    """,
    REDUCTION: """
        batch_norm native_batch_norm layer_norm native_layer_norm group_norm native_group_norm
        log_softmax softmax
    """,
}
"""Kernels whose backward, of the same name, is of their class."""

_OTHERS = {
    RECURRENT: "cudnn_rnn_backward_input cudnn_rnn_backward_weight",
    ATTENTION: "flash_attention_forward efficient_attention_forward cudnn_attention_forward",
    REDUCTION: "log_softmax_backward_data softmax_backward_data safe_softmax nll_loss_forward",
}


@cache
def declared() -> Mapping[str, Kernel]:
    """Return the class of each declared kind (see `base_kind`): ours, and those of other packages."""
    from importlib.metadata import entry_points  # slow to import, seldom needed

    table = {base_kind(e.name): Kernel(e.load()) for e in entry_points(group="graphsim.kernels")}
    for names in (_FORWARD, _BOTH_WAYS, _OTHERS):
        table |= {kind: kernel for kernel, text in names.items() for kind in text.split()}
    return table | {f"{kind}_backward": kernel for kernel, text in _BOTH_WAYS.items() for kind in text.split()}


def base_kind(kind: str) -> str:
    """Return *kind* without what marks it as in place or internal."""
    return kind.strip("_")


def kernel_of(kind: str) -> Kernel:
    """Return the class of the kernels of *kind*."""
    return declared().get(base_kind(kind), ELEMENTWISE)
