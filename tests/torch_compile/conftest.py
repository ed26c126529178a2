"""Real memory is counted by the oracle of the captures."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sources"))
