"""Colours of roles and phases, the same in every picture: those of Okabe and Ito, told apart with any colour vision."""

from __future__ import annotations

ROLE_COLORS = {
    "parameters": "#0072b2",
    "buffers": "#8c8c8c",
    "inputs": "#009e73",
    "optimizer_state": "#cc79a7",
    "gradients": "#56b4e9",
    "saved_activations": "#e69f00",
    "transient_activations": "#f0e442",
    "workspace": "#d55e00",
}
"""Bottom of the stack first: what stays, then what comes and goes."""

PHASE_COLORS = {
    "forward": "#009e73",
    "backward": "#e69f00",
    "recompute": "#d55e00",
    "optimizer": "#cc79a7",
}
