"""What fake kernels do not tell: temporaries inside of CPU kernels, and outputs whose fake has the wrong size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphsim.graph import Tensor
from graphsim.ops.conv import OneDnn
from graphsim.ops.layernorm import THREADS
from graphsim.ops.onednn import lstm_backward_scratch, lstm_forward_scratch, lstm_workspace
from graphsim.ops.tape import Type

aten = torch.ops.aten

Workspace = Callable[[Any, Any], int]
"""(arguments, result) -> bytes of scratch beside inputs and outputs."""

FAKES: dict[Any, Callable[..., Any]] = {}
WORKSPACE: dict[Any, Workspace] = {}
