"""What a kernel returned is returned again for operands of the same geometry: as the real op returns it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode  # noqa: E402
from torch.nn import functional  # noqa: E402

from graphsim.sources.torch.values import Evaluating, Values  # noqa: E402

OPS = {
    "a new tensor": lambda x: x + 1.5,
    "a tensor of another dtype": lambda x: x.to(torch.bfloat16),
    "an integer, by the kind of a number": lambda x: (x.long() * 2, x.long() * 2.0, x.long() * True),
    "a view": lambda x: x[:, 1:3].t(),
    "several views": lambda x: x.split(2, dim=1),
    "a tensor of other strides": lambda x: torch.empty_like(x.t()),
    "a product": lambda x: x @ x.t(),
    "several tensors": lambda x: torch.ops.aten.native_layer_norm(x, (6,), None, None, 1),
    "a sum over a dimension": lambda x: x.sum(1, keepdim=True),
    "the operand itself": lambda x: x.mul_(3),
    "a list of tensors": lambda x: torch._foreach_mul([x, x.t()], 2.0),
    "a padded tensor": lambda x: functional.pad(x, (1, 2)),
    "a tensor in a larger storage": lambda x: functional.mse_loss(x, torch.empty_like(x)),
}


@pytest.mark.parametrize("what", OPS)
def test_the_second_time_it_is_what_the_kernel_returns(what):
    values = Values(FakeTensorMode())
    ran = []
    calls = values.hollows.call

    def call(run, func, *rest):
        ran.append(func)
        return calls(run, func, *rest)

    values.hollows.call = call

    def made():
        x = values.hollows.hollow(values.fake.from_tensor(torch.empty(5, 6)))
        return x, described(x, OPS[what](x))

    with Evaluating(values):
        _, first = made()
        kernels = list(ran)
        _, second = made()
    real = torch.rand(5, 6)
    assert first == second == described(real, OPS[what](real))
    assert kernels, "the first time kernels ran"
    assert ran == kernels, "the second time none did"


def test_what_is_known_of_numbers_is_computed_each_time():
    values = Values(FakeTensorMode())
    with Evaluating(values):
        counts = [values.adopt(torch.tensor([1, 2, number])) + 1 for number in (3, 4)]
        numbers = [values.content(count) for count in counts]
        unknown = values.hollows.hollow(values.fake.from_tensor(torch.empty(3)))
        for count in counts:
            count += unknown.long()
    assert [number.tolist() for number in numbers] == [[2, 3, 4], [2, 3, 5]]
    for count in counts:
        with pytest.raises(DataDependentOutputException):
            values.content(count)


def test_an_update_of_lists_makes_numbers_unknown():
    values = Values(FakeTensorMode())
    with Evaluating(values):
        step = values.adopt(torch.tensor(1.0))
        torch._foreach_add_([step], 1)
    assert values.content(step) == 2
    with Evaluating(values):
        torch._foreach_mul_([step], [values.hollows.hollow(values.fake.from_tensor(torch.empty(())))])
    with pytest.raises(DataDependentOutputException):
        values.content(step)


def described(x, result):
    """Geometry, bytes of the storage, and the operand or the earlier result that it shares."""
    results = result if isinstance(result, list | tuple) else [result]
    storages = [x.untyped_storage()._cdata]
    found = []
    for one in results:
        storage = one.untyped_storage()
        shared = storages.index(storage._cdata) if storage._cdata in storages else None
        storages.append(storage._cdata)
        found.append((one is x, shared, one.shape, one.stride(), one.storage_offset(), one.dtype, storage.nbytes()))
    return type(result), found
