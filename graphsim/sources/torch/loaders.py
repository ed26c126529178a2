"""Loaders of data make their batches in this process: in a worker's, tensors without memory would be pickled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

ALONE = {"num_workers": 0, "timeout": 0, "persistent_workers": False, "pin_memory": False}


@contextmanager
def in_this_process() -> Iterator[None]:
    """Iterate loaders without workers, whatever their number is: the batches are the same."""

    def iterator(loader: Any) -> Any:
        alone = copy.copy(loader)
        vars(alone).update(ALONE)
        return _SingleProcessDataLoaderIter(alone)

    with patch.object(DataLoader, "_get_iterator", iterator):
        yield
