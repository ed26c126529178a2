"""Random graphs and schedules for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from graphsim.graph import HOLD, Graph, Op, Phase, Role, Tensor

SIZES = st.integers(0, 50)
ROLES = st.sampled_from([Role.PARAMETER, Role.OPTIMIZER_STATE, Role.INPUT, Role.GRADIENT, Role.ACTIVATION])


@st.composite
def graphs(draw: st.DrawFn, max_ops: int = 10) -> Graph:
    """A valid graph: several outputs per op, views of views, in-place ops, mutations, holds, workspace."""
    tensors = [Tensor(f"s{i}", (draw(SIZES),), "uint8", draw(ROLES)) for i in range(draw(st.integers(0, 3)))]
    ops: list[Op] = []
    for number in range(draw(st.integers(1, max_ops))):
        op, made = draw(_op(number, tuple(tensors)))
        ops.append(op)
        tensors += made
    names = [t.name for t in tensors]
    kept = draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
    return Graph(ops, tensors, outputs=kept, name="random")


@st.composite
def _op(draw: st.DrawFn, number: int, tensors: tuple[Tensor, ...]) -> tuple[Op, list[Tensor]]:
    inputs = draw(st.lists(st.sampled_from(tensors), max_size=3, unique=True)) if tensors else []
    phase = draw(st.sampled_from([Phase.FORWARD, Phase.FORWARD, Phase.BACKWARD]))
    if inputs and draw(st.integers(0, 5)) == 0:
        return Op(f"o{number}", HOLD, tuple(t.name for t in inputs), phase=phase), []
    mutated = draw(st.lists(st.sampled_from(inputs), max_size=1)) if inputs and draw(st.booleans()) else []
    made = [Tensor(f"o{number}:{i}", (draw(SIZES),), "uint8") for i in range(draw(st.integers(0 if inputs else 1, 2)))]
    if inputs and draw(st.booleans()):
        over = draw(st.sampled_from(mutated or inputs))
        made.append(Tensor(f"o{number}:view", over.shape, "uint8", over.role, over.base))
    op = Op(
        f"o{number}",
        "node",
        tuple(t.name for t in inputs),
        tuple(t.name for t in made),
        phase=phase,
        workspace=draw(st.sampled_from([0, 0, 7])),
        mutates=tuple(t.name for t in mutated),
        time=1.0,
    )
    return op, made


def schedules(graph: Graph) -> st.SearchStrategy[list[int]]:
    """Sequences of op numbers: program order, with repeats, permuted, or arbitrary (often invalid)."""
    count = len(graph.ops)
    program = list(range(count))
    numbers = st.integers(0, count - 1)
    return st.one_of(
        st.just(program),
        st.lists(st.tuples(st.integers(0, count), numbers), max_size=6).map(lambda extra: _inserted(program, extra)),
        st.permutations(program),
        st.lists(numbers, max_size=2 * count).map(lambda extra: program + extra),
        st.lists(numbers, max_size=2 * count),
    )


def _inserted(program: list[int], extra: list[tuple[int, int]]) -> list[int]:
    """Put each extra execution of op number *op* at *place*, mostly after the op's own place."""
    order = list(program)
    for place, op in extra:
        order.insert(max(place, op + 1), op)
    return order
