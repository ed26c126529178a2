"""CUDA kernels that take no scratch, by the place that shows it, and those of which it is not known.

Places are under aten/src/ATen/native.
"""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten

ELEMENTWISE = "cuda/Loops.cuh, `gpu_kernel`: TensorIterator allocates results only"
"""Of all ops with the tag ``pointwise``, and of casts and copies."""

NONE: dict[str, tuple[str, ...]] = {
    ELEMENTWISE: ("_to_copy", "clone", "copy_", "fill_", "zero_", "where", "masked_fill", "lerp", "threshold_backward"),
    "TensorShape.cpp: views": (
        *("view", "_unsafe_view", "t", "transpose", "permute", "expand", "select", "slice", "split", "unbind"),
        *("squeeze", "unsqueeze", "as_strided", "detach", "alias", "unfold", "diagonal", "split_with_sizes"),
    ),
    "TensorFactories.cpp, cuda/TensorFactories.cu": (
        *("empty", "empty_like", "empty_strided", "zeros", "zeros_like", "ones", "ones_like", "full", "full_like"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "scalar_tensor", "eye"),
    ),
    "cuda/RangeFactories.cu": ("arange", "linspace"),
    "cuda/Shape.cu, `cat_out_cuda`: operands are named in the arguments of the kernel": ("cat", "stack"),
    "TensorShape.cpp: copies into the result": ("repeat", "slice_backward", "select_backward", "constant_pad_nd"),
    "cuda/TriangularOps.cu": ("tril", "triu"),
    "cuda/Dropout.cu": ("native_dropout", "native_dropout_backward"),
    "cuda/DistributionTemplates.h": ("bernoulli", "bernoulli_", "rand", "randn", "normal_", "uniform_", "rand_like"),
    "cuda/Activation*.cu": ("gelu_backward", "silu_backward", "glu", "glu_backward", "_prelu_kernel_backward"),
    "cuda/Indexing.cu": ("embedding", "index_select", "index_add", "index_copy"),
    "cuda/ScatterGatherKernel.cu": ("gather", "scatter", "scatter_", "scatter_add", "scatter_reduce"),
    "cuda/TensorTransformations.cu": ("flip",),
    "cuda/layer_norm_kernel.cu, `LayerNormKernelImplInternal`": ("native_layer_norm",),
    "cuda/Normalization.cuh; cuDNN's own workspace is not known": ("native_batch_norm",),
    "transformers/cuda/attention.cu: what is saved is returned": (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
    ),
    "cuda/Loss.cu, `nll_loss_forward_out_cuda_template`; cuda/NLLLoss2d.cu": (
        "nll_loss_backward",
        "nll_loss2d_backward",
    ),
    "cuda/MultiTensorApply.cuh: lists are passed in the arguments of the kernels": (
        *(
            "_foreach_add_",
            "_foreach_mul_",
            "_foreach_addcmul_",
            "_foreach_addcdiv_",
            "_foreach_lerp_",
            "_foreach_sqrt",
        ),
        *("_foreach_div_", "_foreach_zero_", "_amp_foreach_non_finite_check_and_unscale_"),
        *("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"),
    ),
}
"""Ops without scratch beside copies that put operands in order, by source. A foreach op stands for its kind."""

UNKNOWN: dict[str, tuple[str, ...]] = {
    "cuSOLVER and MAGMA choose their workspaces": (
        *("_linalg_svd", "linalg_qr", "_linalg_eigh", "_linalg_solve_ex", "linalg_inv_ex", "linalg_lu_factor_ex"),
        *(
            "linalg_cholesky_ex",
            "_linalg_det",
            "_linalg_slogdet",
            "linalg_lstsq",
            "linalg_eig",
            "linalg_solve_triangular",
        ),
        *("linalg_lu_solve", "cholesky_solve", "cholesky_inverse", "triangular_solve", "linalg_householder_product"),
        *("ormqr", "geqrf"),
    ),
    "cuFFT's plans take memory of their own": ("_fft_r2c", "_fft_c2r", "_fft_c2c"),
    "cub's and thrust's temporaries": ("_unique2", "unique_dim", "unique_consecutive", "mode"),
}
"""Ops whose scratch no rule is known for, by the reason: a capture that has one says so."""


def scratch_unknown(func: Any) -> bool:
    """Return whether nothing is known of the scratch of *func* on CUDA."""
    name = func._schema.name.removeprefix("aten::")
    return any(name in names for names in UNKNOWN.values())
