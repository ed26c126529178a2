"""What a process takes of a GPU outside of PyTorch's allocator: the CUDA context, loaded kernels, library handles.

No rule is known: it depends on the card, the driver, the version of CUDA and on what was loaded. So there is a table
of what was measured, and a range where nothing was. From PyTorch 1.13 on kernels are loaded when they are first
called (CUDA_MODULE_LOADING=LAZY): older versions take up to ten times as much.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Measured:
    """A published figure, or several that differ: from *least* to *most* bytes.

    Attributes:
        card: a device of the catalogue.
        libraries: what had been loaded, beside the context itself.
        software: versions, as far as they are known.
        current: of a version of PyTorch that loads kernels lazily.
        source: who published it.
    """

    card: str
    libraries: frozenset[str]
    least: int
    most: int
    software: str
    current: bool
    source: str


CUBLAS, CUDNN = "cuBLAS", "cuDNN"
_NONE: frozenset[str] = frozenset()
_BOTH = frozenset({CUBLAS, CUDNN})
_T4 = "torch-preflight's calibration"
_A100 = "GPUMemNet's runs, whole card by nvidia-smi"

TABLE = (
    Measured("t4", _NONE, 110 * MIB, 110 * MIB, "PyTorch 2.11, CUDA 12.8", True, _T4),
    Measured("t4", frozenset({CUBLAS}), 131 * MIB, 131 * MIB, "PyTorch 2.11, CUDA 12.8", True, _T4),
    Measured("t4", _BOTH, 141_426_688, 141_426_688, "PyTorch 2.11, CUDA 12.8", True, _T4),
    Measured(
        "v100-32g", _NONE, 1343 * MIB, 1343 * MIB, "PyTorch 1.10, CUDA 11.2", False, "transformers' documentation"
    ),
    Measured("rtx3090", _NONE, 1486 * MIB, 1486 * MIB, "PyTorch 1.7, CUDA 11.0", False, "pytorch/pytorch#49877"),
    Measured("a100-40g", frozenset({CUBLAS}), 1429 * MIB, 1429 * MIB, "not said", False, _A100),
    Measured("a100-40g", _BOTH, 1603 * MIB, 1820 * MIB, "not said", False, f"{_A100}: one convolution, a CNN"),
)
"""What was measured."""

CONTEXT = (135 * MIB, 1820 * MIB)
"""Least and most where nothing was measured: those of a whole training in `TABLE`, on any card."""


@dataclass(frozen=True, slots=True)
class Context:
    """From *least* to *most* bytes, and where that is from."""

    least: int
    most: int
    source: str


def context_of(card: str, *, cudnn: bool = True) -> Context:
    """Return what a training takes outside of PyTorch's allocator on *card*, a name of the catalogue or empty.

    Figures for the card with what is loaded there (cuBLAS; *cudnn*, where something convolves) count; older software
    than ours only says what it takes at most.
    """
    needed = _BOTH if cudnn else frozenset({CUBLAS})
    known = [one for one in TABLE if one.card == card and one.libraries == needed]
    current = [one for one in known if one.current]
    if current:
        said = ", ".join(dict.fromkeys(f"{one.software} ({one.source})" for one in current))
        return Context(min(one.least for one in current), max(one.most for one in current), f"measured: {said}")
    if known:
        most = max(one.most for one in known)
        return Context(CONTEXT[0], most, f"at most as measured under older software ({known[0].source})")
    return Context(*CONTEXT, "not measured on this card; the range of others: a T4, an A100")
