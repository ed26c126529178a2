"""Packing and padding by ops with known lengths is what PyTorch does below its dispatcher."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError  # noqa: E402
from graphsim.sources.torch.packed import PACK, PAD, pack, pad  # noqa: E402

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6).map(lambda found: sorted(found, reverse=True))


@given(LENGTHS, st.booleans(), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 3))
def test_values_and_gradients_are_pytorchs(lengths, batch_first, inner, more):
    extents = (len(lengths), lengths[0] + more)
    x = torch.randn(*(extents if batch_first else extents[::-1]), *inner)
    results = []
    for packing, padding, said in ((PACK, PAD, torch.tensor(lengths)), (pack, pad, lengths)):
        leaf = x.clone().requires_grad_()
        packed, sizes = packing(leaf, said, batch_first)
        padded, found = padding(packed, sizes if padding is PAD else sizes.tolist(), batch_first, 0.5, extents[1])
        (padded * torch.arange(padded.numel()).view_as(padded)).sum().backward()
        results.append((packed, sizes, padded, found, leaf.grad))
    for theirs, ours in zip(*results, strict=True):
        assert torch.equal(theirs, ours)
        assert theirs.stride() == ours.stride()


@pytest.mark.parametrize("lengths", [[1, 2], [2, 0], [2, 1, 1], []])
def test_wrong_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths"):
        pack(torch.randn(2, 3, 4), lengths, batch_first=True)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)

    def forward(self, ids, lengths):
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.read(packed)[0], batch_first=True)[0].square().mean()


def test_on_cuda_packed_sequences_run_in_cudnn():
    batch = torch.randint(0, 20, (3, 5)), torch.tensor([2, 5, 1])
    graph = gs.from_torch(Reader(), batch, target="cuda")
    assert [op.kind for op in graph.ops].count("_cudnn_rnn") == 1


def test_lengths_that_nobody_knows_are_refused_with_the_line():
    class Learned(Reader):
        def forward(self, ids, lengths):
            return super().forward(ids, self.embed(ids).sum((1, 2)).long())

    with pytest.raises(CaptureError, match=r"test_torch_packed\.py:\d+.*lengths of packed sequences"):
        gs.from_torch(Learned(), (torch.randint(0, 20, (3, 5)), torch.tensor([2, 5, 1])))
