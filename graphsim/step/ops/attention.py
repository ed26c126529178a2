"""Scaled dot-product attention: which kernel runs, what it saves, what it needs meanwhile.

Shapes: B batch, S queries, T keys, H heads, K key/value heads, D head width. Projections are
(B, S, H*D); heads are views (B, H, S, D) of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import add, dropout, like, reduce_to, scale
from graphsim.step.ops.kind import Attribute, Attributes, Kind, ShapeError, Signature
from graphsim.step.ops.matmul import bmm, softmax
from graphsim.step.ops.rotary import rotate
from graphsim.step.ops.shape import expand, split
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import itemsize

KERNELS = ("sdpa", "math", "flash", "efficient", "eager")

SOFTMAX = ("cast", "fp32", "plain")
"""How eager attention takes its softmax: in the scores' dtype, cast to the values' (GPT-2); in fp32, cast back
(Llama, ViT); in the scores' dtype (BERT, T5)."""

THREADS = 2
"""Threads whose tiles are counted in the CPU flash kernel."""


# -- heads -----------------------------------------------------------------------------------------


def split_heads(tape: Tape, x: Tensor, heads: int, width: int, *, keys_of_bmm: bool = False) -> Tensor:
    """View (B, S, H*D) as (B, H, S, D).

    The gradient is viewed back, which copies it if its heads come first in memory. The gradient of
    keys that a product transposed (*keys_of_bmm*) needs no copy here; folding its rows copies it.
    """
    batch, length, _ = x.shape
    y = tape.alias(x, (batch, heads, length, width), kind="transpose", contiguous=False)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        if keys_of_bmm:
            return (tape.alias(grad, x.shape, kind="transpose", contiguous=batch == 1),)
        if tape.is_contiguous(grad):
            grad = tape.emit("clone", (grad,), like(grad))
        return (tape.alias(grad, x.shape, kind="transpose"),)

    tape.differentiate((x,), y, (), backward)
    return y


def merge_heads(tape: Tape, x: Tensor) -> Tensor:
    """Return (B, H, S, D) as (B, S, H*D): a copy, unless memory already has the heads last."""
    batch, heads, length, width = x.shape
    copied = tape.is_contiguous(x)
    merged = tape.emit("clone", (x,), like(x)) if copied else x
    y = tape.alias(merged, (batch, length, heads * width), kind="transpose")

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.alias(grad, x.shape, kind="transpose", contiguous=batch == 1),)

    tape.differentiate((x,), y, (), backward)
    return y


def _folded(tape: Tape, x: Tensor) -> Tensor:
    """Fold batch and heads for a batched product: a copy, unless heads are in order or there is one sample."""
    return x if x.shape[0] == 1 else tape.contiguous(x)


def _unfolded(tape: Tape, x: Tensor) -> Tensor:
    """The result of a batched product; its gradient is folded before it enters."""
    y = tape.alias(x, x.shape, kind="unfold")

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.contiguous(grad),)

    tape.differentiate((x,), y, (), backward)
    return y


def repeat_keys(tape: Tape, x: Tensor, times: int) -> Tensor:
    """Return (B, K, T, D) with each head *times* in a row: a copy (transformers, repeat_kv)."""
    if times == 1:
        return x
    batch, heads, length, width = x.shape
    grouped = tape.alias(x, (batch, heads, 1, length, width), contiguous=False)
    tape.differentiate((x,), grouped, (), lambda grad, needs: (tape.alias(grad, x.shape),))
    wide = expand(tape, grouped, (batch, heads, times, length, width))
    return tape.view(tape.contiguous(wide), (batch, heads * times, length, width))


# -- kernels ---------------------------------------------------------------------------------------


def math_attention(
    tape: Tape, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, p: float
) -> Tensor:
    """The composed kernel: aten/src/ATen/native/transformers/attention.cpp, _scaled_dot_product_attention_math.

    16-bit operands are computed in fp32. Queries and keys are scaled before their product, the mask is
    added in place; operands in fp32, scaled queries, repeated keys and values, and the mask are locals.
    The weights are returned too, in the operands' dtype, and dropped.
    """
    dtype = q.dtype
    wide = [_keep_layout(tape, x, tape.to(x, "float32")) if itemsize(dtype) == 2 else x for x in (q, k, v)]
    with tape.without_autocast():
        q_scaled = _keep_layout(tape, wide[0], scale(tape, wide[0], wrapped=False))
        if causal:
            size = Type((q.shape[2], k.shape[2]))
            mask = tape.emit("causal_mask", (), Type(size.shape, q_scaled.dtype), workspace=size.size)
        keys, values = (repeat_keys(tape, x, q.shape[1] // k.shape[1]) for x in wide[1:])
        k_scaled = _keep_layout(tape, keys, scale(tape, keys, wrapped=False))
        scores = _unfolded(tape, bmm(tape, _folded(tape, q_scaled), _folded(tape, k_scaled), transpose_b=True))
        if mask is not None:
            scores = _add_mask(tape, scores, mask)
        rows = scores.size // scores.shape[-1]
        weights = softmax(tape, scores, workspace=scores.size + rows)  # rows without any finite score become zeros
        weights = dropout(tape, weights, p)
        dropped = tape.to(weights, dtype)
        result = tape.to(_unfolded(tape, bmm(tape, weights, _folded(tape, values))), dtype)
    tape.hold([q_scaled, *wide, keys, values, *([] if mask is None else [mask]), dropped])
    return result


def _keep_layout(tape: Tape, source: Tensor, result: Tensor) -> Tensor:
    """An elementwise result has the memory order of its operand."""
    if not tape.is_contiguous(source):
        tape.mark_strided(result)
    return result


def _add_mask(tape: Tape, scores: Tensor, mask: Tensor) -> Tensor:
    result = tape.inplace("add_", scores, (mask,))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (grad if needs[0] else None, reduce_to(tape, grad, mask.shape) if needs[1] else None)

    tape.differentiate((scores, mask), result, (), backward)
    return result


def eager_attention(
    tape: Tape, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, p: float, softmax_in: str
) -> Tensor:
    """Attention composed in Python, as transformers' eager_attention_forward; *softmax_in* as in `SOFTMAX`."""
    times = q.shape[1] // k.shape[1]
    k, v = repeat_keys(tape, k, times), repeat_keys(tape, v, times)
    scores = scale(tape, _unfolded(tape, bmm(tape, _folded(tape, q), _folded(tape, k), transpose_b=True)))
    if causal and mask is None:
        mask = _shared_causal_mask(tape, q, k)
    if mask is not None:
        scores = add(tape, scores, mask)
    weights = softmax(tape, scores, fp32=softmax_in == "fp32")
    if softmax_in != "plain":
        weights = tape.to(weights, v.dtype)
    weights = dropout(tape, weights, p)
    return _unfolded(tape, bmm(tape, weights, _folded(tape, v)))


def _shared_causal_mask(tape: Tape, q: Tensor, k: Tensor) -> Tensor:
    """The additive mask that the model makes once per forward pass, in its own dtype, and all its layers use."""
    shape = (q.shape[0], 1, q.shape[2], k.shape[2])
    dtype = "float32" if tape.autocast else q.dtype
    key = f"causal mask {shape}"
    if key not in tape.shared:
        size = Type(shape, dtype)
        tape.shared[key] = tape.emit("causal_mask", (), size, workspace=size.size)
    return tape.shared[key]


def cpu_flash_attention(tape: Tape, q: Tensor, k: Tensor, v: Tensor, extra: Sequence[Tensor]) -> Tensor:
    """The fused CPU kernel: aten/src/ATen/native/cpu/FlashAttentionKernel.cpp.

    Saves q, k, v, the output and the log-sum-exp of each row; per thread, tiles of scores in fp32.
    """
    forward, backward = cpu_flash_scratch(q.shape[2], k.shape[2], q.shape[3], itemsize(q.dtype))
    return _fused(tape, "flash_attention", q, k, v, extra, q.shape[2], (), forward, backward)


def cpu_flash_scratch(queries: int, keys: int, width: int, size: int) -> tuple[int, int]:
    """Return the bytes of the tiles of all threads, forward and backward; *size* of an element."""
    tile = 256 if queries >= 768 else 64 if queries >= 192 else 32
    tile, keys = min(tile, queries), min(512, keys)
    low = 2 if size == 2 else 0  # bytes of the second copy of a tile, for the product in 16 bit
    forward = THREADS * (4 * (tile * keys + 2 * tile + tile * width) + low * tile * keys)
    return forward, THREADS * (4 + low) * 2 * tile * keys + 4 * tile


def cuda_flash_attention(tape: Tape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 2: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp.

    Saves q, k, v, the output, the log-sum-exp of each row in fp32, and the random state. Backward
    accumulates dq in fp32 and keeps one sum per row, rows rounded up to 128 and heads to 32 wide;
    for grouped queries dk and dv are made for every head and summed.
    """
    batch, heads, rows, width = q.shape
    backward = flash_scratch(batch, heads, rows, width, k.shape[1], k.shape[2], itemsize(k.dtype))
    return _fused(tape, "flash_attention", q, k, v, (), rows, (Type((2,), "int64"), Type((), "int64")), 0, backward)


def flash_scratch(batch: int, heads: int, rows: int, width: int, groups: int, keys: int, size: int) -> int:
    """Return the scratch of flash attention's backward on CUDA, in bytes; *size* of an element of k and v."""
    rounded = -(-rows // 128) * 128
    expanded = 2 * batch * heads * keys * width * size if groups != heads else 0
    return batch * heads * rounded * 4 * (1 + -(-width // 32) * 32) + expanded


def efficient_attention(tape: Tape, q: Tensor, k: Tensor, v: Tensor, extra: Sequence[Tensor]) -> Tensor:
    """Memory-efficient attention: aten/src/ATen/native/transformers/cuda/attention.cu, attention_backward.cu.

    Saves q, k, v, the output, the log-sum-exp of each row (rows rounded up to 32) in fp32, seed and
    offset. Backward: one sum per row (delta), and in 16-bit formats a gradient of q in fp32; in fp32
    delta is the sum of a product of the output's size.
    """
    batch, heads, rows, width = q.shape
    rounded = -(-rows // 32) * 32
    random_state = (Type((), "int64"), Type((), "int64"))
    scratch = efficient_scratch(batch, heads, rows, width, itemsize(q.dtype))
    return _fused(tape, "efficient_attention", q, k, v, extra, rounded, random_state, 0, scratch)


def efficient_scratch(batch: int, heads: int, rows: int, width: int, size: int) -> int:
    """Return the scratch of memory-efficient attention's backward, in bytes; *size* of an element."""
    fp32 = batch * heads * rows * width * 4 if size <= 4 else 0  # of a gradient, or of a product
    return batch * heads * rows * 4 + fp32


def _fused(
    tape: Tape,
    kind: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra: Sequence[Tensor],
    rows: int,
    random_state: tuple[Type, ...],
    forward: int,
    backward: int,
) -> Tensor:
    """One node over fused forward and backward kernels; results have their heads last in memory."""
    flops = 4 * q.size * k.shape[2]
    statistics = Type((q.shape[0], q.shape[1], rows), "float32")
    y, *kept = tape.emit_many(
        kind, (q, k, v, *extra), (like(q), statistics, *random_state), workspace=forward, flops=flops
    )
    tape.mark_strided(y)
    saved = (q, k, v, *extra, y, *kept)

    def rule(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        wanted = [t for t, need in zip((q, k, v, *extra), needs, strict=True) if need]
        results = tape.emit_many(
            f"{kind}_backward", (grad, *saved), [like(t) for t in wanted], workspace=backward, flops=5 * flops // 2
        )
        for result in results:
            tape.mark_strided(result)
        remaining = iter(results)
        return [next(remaining) if need else None for need in needs]

    tape.differentiate((q, k, v, *extra), y, saved, rule)
    return y


# -- the choice ------------------------------------------------------------------------------------


def choose(tape: Tape, q: Tensor, kernel: str, *, mask: Tensor | None, p: float, grouped: bool) -> str:
    """Return the kernel that runs for *kernel*, where "sdpa" leaves the choice to PyTorch.

    Source: CPU: aten/src/ATen/native/transformers/sdp_utils_cpp.cpp (flash unless dropout, or a mask
    that is learned); CUDA: cuda/sdp_utils.cpp (flash: 16-bit, sm80 or later, no mask, head width up
    to 256; then memory-efficient, which lacks bf16 before sm80). On sm90 and sm100 with cuDNN 9.15.1 or later
    PyTorch prefers cuDNN's kernel, which saves what flash attention saves. Without a mask, transformers
    leaves *grouped* keys to PyTorch (sdpa_attention.py, ``use_gqa_in_sdpa``); memory-efficient attention
    does not take them.
    """
    if kernel != "sdpa":
        return kernel
    if tape.target == "cpu":
        learned = mask is not None and tape.requires_gradient(mask)
        return "math" if learned or (p > 0 and tape.training) else "flash"
    ampere = tape.capability >= (8, 0)
    if itemsize(q.dtype) == 2 and ampere and mask is None and q.shape[3] <= 256:
        return "flash"
    return "math" if (q.dtype == "bfloat16" and not ampere) or (grouped and mask is None) else "efficient"


def attend(
    tape: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    kernel: str,
    causal: bool,
    p: float,
    softmax_in: str = "cast",
) -> Tensor:
    """softmax(q @ k.T / sqrt(D) + mask) @ v over heads (B, H, S, D) by *kernel* of `choose`."""
    times = q.shape[1] // k.shape[1]
    extra = () if mask is None else (mask,)
    if kernel == "eager":
        return eager_attention(tape, q, k, v, mask, causal=causal, p=p, softmax_in=softmax_in)
    if kernel == "flash" and tape.target == "cpu":
        return cpu_flash_attention(tape, q, k, v, extra)
    if kernel == "flash":
        return cuda_flash_attention(tape, q, k, v)
    if kernel == "math":
        return math_attention(tape, q, k, v, mask, causal=causal, p=p)
    return efficient_attention(tape, q, repeat_keys(tape, k, times), repeat_keys(tape, v, times), extra)


# -- the op ----------------------------------------------------------------------------------------


def _widths(types: Sequence[Type], attributes: Attributes) -> tuple[int, int, int]:
    """Return (heads, key/value heads, head width).

    Raises:
        ShapeError: the operands' widths do not divide.
    """
    heads, keys = attributes["heads"], attributes["kv_heads"] or attributes["heads"]
    if len(types[0].shape) != 3:
        raise ShapeError(f"attention needs (batch, positions, width), not shape {list(types[0].shape)}")
    if heads % keys:
        raise ShapeError(f"attention: kv_heads = {keys} must divide heads = {heads}")
    parts = heads if _separate(types) else heads + 2 * keys
    width = types[0].shape[2]
    if width % parts:
        raise ShapeError(f"attention: width {width} does not divide into {parts} heads")
    return heads, keys, width // parts


def _separate(types: Sequence[Type]) -> bool:
    """True for operands q, k, v; False for one packed operand. Either may be followed by a mask."""
    return len(types) >= 3


def _infer(types: Sequence[Type], attributes: Attributes) -> Signature:
    heads, keys, width = _widths(types, attributes)
    q = types[0]
    if _separate(types):
        for other in types[1:3]:
            if len(other.shape) != 3 or other.shape[0] != q.shape[0] or other.shape[2] != keys * width:
                raise ShapeError(
                    f"attention: keys and values must be ({q.shape[0]}, positions, {keys * width}), "
                    f"not {list(other.shape)}"
                )
    return Signature((Type((*q.shape[:2], heads * width), q.dtype),))


def _lower(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
    types = [like(t) for t in inputs]
    heads, keys, width = _widths(types, attributes)
    if _separate(types):
        (q, k, v), rest = inputs[:3], inputs[3:]
    else:
        q, k, v = split(tape, inputs[0], [heads * width, keys * width, keys * width], 2)
        rest = inputs[1:]
    mask = rest[0] if rest else None
    p = attributes["p"] if tape.training else 0.0
    composed = not attributes["rotary"]
    probe = Tensor("q", (1, heads, 1, width), tape.autocast or q.dtype)
    kernel = choose(tape, probe, attributes["kernel"], mask=mask, p=p, grouped=heads != keys)
    from_bmm = composed and kernel in ("math", "eager") and heads == keys
    q_heads = split_heads(tape, q, heads, width)
    k_heads = split_heads(tape, k, keys, width, keys_of_bmm=from_bmm)
    v_heads = split_heads(tape, v, keys, width)
    if attributes["rotary"]:
        q_heads, k_heads = rotate(tape, q_heads, k_heads)
    if kernel != "eager":
        q_heads, k_heads, v_heads = tape.low_precision(q_heads, k_heads, v_heads)
    result = attend(
        tape, q_heads, k_heads, v_heads, mask,
        kernel=kernel, causal=attributes["causal"], p=p, softmax_in=attributes["softmax"],
    )  # fmt: skip
    return merge_heads(tape, result)


KINDS: tuple[Kind, ...] = (
    Kind(
        "attention",
        _infer,
        _lower,
        (
            Attribute("heads", "int", about="query heads", minimum=1),
            Attribute("kv_heads", "int", 0, "key/value heads (0: as many as query heads)"),
            Attribute("causal", "bool", False, "each position sees itself and those before"),
            Attribute("p", "float", 0.0, "dropout of the attention weights", maximum=1),
            Attribute("kernel", "name", "sdpa", "sdpa: PyTorch chooses; eager: composed in Python", choices=KERNELS),
            Attribute("softmax", "name", "cast", "eager: dtype of the softmax", choices=SOFTMAX),
            Attribute("rotary", "bool", False, "rotary position embedding of queries and keys"),
        ),
        operands=(1, 4),
        about="multi-head attention over one packed operand, or over q, k, v; a last operand may be an additive mask",
        source="aten/src/ATen/native/transformers/attention.cpp",
    ),
)
