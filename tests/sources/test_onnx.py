"""ONNX files built by hand: the graph of the same spec, the bytes of PyTorch, one clear error for a wrong file."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")

from command_line import graphsim  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import GraphSimError, MissingExtraError, SpecError, UsageError  # noqa: E402
from graphsim.sources.spec import parse_spec  # noqa: E402


class Model:
    """An ONNX graph in the making: each call adds a node and returns the name of its result."""

    def __init__(self, **inputs):
        self.nodes, self.initializers = [], []
        self.inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]

    def weight(self, name, *shape, kind=TensorProto.FLOAT):
        """An initializer without data: nobody looks at it."""
        self.initializers.append(TensorProto(name=name, data_type=kind, dims=shape))
        return name

    def constant(self, name, values, dtype="int64"):
        self.initializers.append(onnx.numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def __call__(self, op, *operands, outputs=1, name="", **attributes):
        name = name or f"n{len(self.nodes)}"
        results = [name if not i else f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, operands, results, name=name, **attributes))
        return results[0] if outputs == 1 else results

    def proto(self, *outputs, opset=20, **options):
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "hand", self.inputs, infos, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **options)

    def save(self, folder, *outputs, **options):
        path = folder / "model.onnx"
        path.write_bytes(self.proto(*outputs, **options).SerializeToString())
        return str(path)


FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def linear(m, x, name, inner, outer):
    return m("Gemm", x, m.weight(f"{name}.weight", outer, inner), m.weight(f"{name}.bias", outer), transB=1)


def conv(m, x, name, inner, outer, kernel=3, stride=1, bias=True):
    operands = [x, m.weight(f"{name}.weight", outer, inner, kernel, kernel)]
    operands += [m.weight(f"{name}.bias", outer)] if bias else []
    return m("Conv", *operands, pads=[kernel // 2] * 4, strides=[stride] * 2)


def batch_norm(m, x, name, channels):
    names = [m.weight(f"{name}.{part}", channels) for part in ("weight", "bias", "mean", "var")]
    return m("BatchNormalization", x, *names)


def mlp():
    m = Model(x=(FLOAT, ["batch", 48]))
    h = m("Relu", linear(m, "x", "fc1", 48, 64))
    return m, linear(m, m("Tanh", linear(m, h, "fc2", 64, 64)), "head", 64, 10)


def vgg():
    m = Model(image=(FLOAT, ["N", 3, 32, 32]))
    h = m("Relu", conv(m, "image", "conv1", 3, 16))
    h = m("MaxPool", m("Relu", conv(m, h, "conv2", 16, 32)), kernel_shape=[2, 2], strides=[2, 2])
    h = m("AveragePool", conv(m, h, "conv3", 32, 24, bias=False), kernel_shape=[2, 2], strides=[2, 2])
    return m, linear(m, m("Flatten", h), "head", 24 * 64, 10)


def resnet_block():
    m = Model(image=(FLOAT, ["batch", 16, 16, 16]))
    h = m("Relu", batch_norm(m, conv(m, "image", "c1", 16, 32, stride=2, bias=False), "b1", 32))
    h = batch_norm(m, conv(m, h, "c2", 32, 32, bias=False), "b2", 32)
    short = batch_norm(m, conv(m, "image", "down", 16, 32, kernel=1, stride=2, bias=False), "b3", 32)
    h = m("GlobalAveragePool", m("Relu", m("Add", h, short)))
    return m, linear(m, m("Flatten", h), "head", 32, 10)


def attention_block():
    m = Model(ids=(INT, ["batch", "seq"]))
    x = m("Gather", m.weight("table", 50, 32), "ids", name="emb")
    y = m("LayerNormalization", x, m.weight("ln.weight", 32), m.weight("ln.bias", 32))
    heads = []
    for part in "qkv":
        h = m("Add", m("MatMul", y, m.weight(f"{part}.weight", 32, 32)), m.weight(f"{part}.bias", 32))
        h = m("Reshape", h, m.constant(f"{part}.shape", [0, 0, 4, 8]))
        heads.append(m("Transpose", h, perm=[0, 2, 1, 3] if part != "k" else [0, 2, 3, 1]))
    scale = m.constant("scale", 8**-0.25, "float32")
    scores = m("MatMul", m("Mul", heads[0], scale), m("Mul", heads[1], scale))
    z = m("Transpose", m("MatMul", m("Softmax", scores), heads[2]), perm=[0, 2, 1, 3])
    z = m("Reshape", z, m.constant("merged", [0, 0, 32]))
    z = m("Add", x, m("Add", m("MatMul", z, m.weight("o.weight", 32, 32)), m.weight("o.bias", 32)))
    return m, linear(m, m("Reshape", z, m.constant("flat", [-1, 32])), "head", 32, 50)


SPECS = {
    "mlp": """
    [params]
    batch = 6
    [inputs]
    x = { shape = ["batch", 48] }
    labels = { shape = ["batch"], dtype = "int64" }
    [model]
    layers = [
      { op = "linear", out = 64, name = "fc1" }, "relu", { op = "linear", out = 64, name = "fc2" }, "tanh",
      { op = "linear", out = 10, name = "head" }, { op = "cross_entropy", with = "labels" },
    ]
    """,
    "vgg": """
    [params]
    batch = 6
    [inputs]
    image = { shape = ["batch", 3, 32, 32] }
    labels = { shape = ["batch"], dtype = "int64" }
    [model]
    layers = [
      { op = "conv2d", out = 16, kernel = 3, padding = 1 }, "relu",
      { op = "conv2d", out = 32, kernel = 3, padding = 1 }, "relu", { op = "max_pool", kernel = 2 },
      { op = "conv2d", out = 24, kernel = 3, padding = 1, bias = false }, { op = "avg_pool", kernel = 2 },
      "flatten", { op = "linear", out = 10 }, { op = "cross_entropy", with = "labels" },
    ]
    """,
    "resnet_block": """
    [params]
    batch = 6
    [inputs]
    image = { shape = ["batch", 16, 16, 16] }
    labels = { shape = ["batch"], dtype = "int64" }
    [block.conv]
    args = { out = "required", kernel = 3, stride = 1 }
    layers = [
      { op = "conv2d", out = "out", kernel = "kernel", stride = "stride", padding = "kernel // 2", bias = false },
      "batch_norm",
    ]
    [model]
    layers = [
      { block = "conv", out = 32, stride = 2 }, "relu", { block = "conv", out = 32, name = "last" },
      { block = "conv", out = 32, kernel = 1, stride = 2, from = "image", name = "short" },
      { op = "add", from = "last", with = "short" }, "relu", "adaptive_avg_pool", "flatten",
      { op = "linear", out = 10 }, { op = "cross_entropy", with = "labels" },
    ]
    """,
}
MODELS = {"mlp": mlp, "vgg": vgg, "resnet_block": resnet_block, "attention_block": attention_block}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", SPECS)
def test_the_step_is_that_of_the_same_model_as_a_spec(tmp_path, name, target):
    m, output = MODELS[name]()
    imported = gs.load(m.save(tmp_path, output), batch=6, loss="cross_entropy")
    spec = parse_spec(SPECS[name])
    for options in ({"optimizer": "adamw"}, {"optimizer": "sgd", "precision": "amp-bf16"}, {"mode": "evaluation"}):
        ours, theirs = (gs.training_step(graph, target=target, **options) for graph in (imported, spec))
        assert [op.kind for op in ours.ops] == [op.kind for op in theirs.ops]
        assert gs.simulate(ours).timeline.tolist() == gs.simulate(theirs).timeline.tolist()


# -- against PyTorch ---------------------------------------------------------------------------------


def real_modules():
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class ResNetBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.b1 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
            self.c2, self.b2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
            self.down, self.b3 = nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            h = torch.relu(self.b1(self.c1(x)))
            h = torch.relu(self.b2(self.c2(h)) + self.b3(self.down(x)))
            return self.head(nn.functional.adaptive_avg_pool2d(h, 1).flatten(1))

    class AttentionBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.ln, self.head = nn.Embedding(50, 32), nn.LayerNorm(32), nn.Linear(32, 50)
            self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

        def forward(self, ids):
            x = self.table(ids)
            y = self.ln(x)
            q, k, v = (part(y).view(*ids.shape, 4, 8).transpose(1, 2) for part in (self.q, self.k, self.v))
            z = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.head((x + self.o(z.transpose(1, 2).reshape(x.shape))).view(-1, 32))

    return {
        "mlp": (
            lambda: nn.Sequential(
                nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
            ),
            torch.randn(6, 48),
        ),
        "vgg": (
            lambda: nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                nn.MaxPool2d(2), nn.Conv2d(32, 24, 3, padding=1, bias=False), nn.AvgPool2d(2), nn.Flatten(),
                nn.Linear(24 * 64, 10),
            ),
            torch.randn(6, 3, 32, 32),
        ),
        "resnet_block": (ResNetBlock, torch.randn(6, 16, 16, 16)),
        "attention_block": (AttentionBlock, torch.randint(0, 50, (6, 20))),
    }  # fmt: skip


def measured_peaks(make, x):
    """Peaks of forward and backward of the second step of a real training by SGD, parameters included."""
    import torch
    from torch.profiler import record_function
    from torch_memory import measure

    def run():
        model, batch = make(), x.clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
        for step in range(2):
            name = f"##{step}"
            optimizer.zero_grad()
            with record_function(f"{name}forward"):
                loss = model(batch).mean()
            with record_function(f"{name}backward"):
                loss.backward()
            optimizer.step()

    measured = measure(run)
    return {phase: measured[f"1{phase}"].peak for phase in ("forward", "backward")}


SCALARS = 64
"""Bytes of the numbers that become tensors."""


def sgd_step(tmp_path, name):
    m, output = MODELS[name]()
    sizes = {"batch": 6, "seq": 20} if name == "attention_block" else {"batch": 6}
    graph = gs.load(m.save(tmp_path, output), **sizes)
    return gs.training_step(graph, optimizer="sgd", optimizer_impl="forloop", target="cpu")


@pytest.mark.parametrize("name", ["mlp", "attention_block"])
def test_the_peaks_are_those_that_pytorch_reaches(tmp_path, name):
    peaks = gs.simulate(sgd_step(tmp_path, name)).phase_peaks()
    for phase, real in measured_peaks(*real_modules()[name]).items():
        assert abs(peaks[phase] - real) <= SCALARS, (phase, peaks, real)


@pytest.mark.parametrize("name", MODELS)
def test_between_ops_as_many_bytes_live_as_in_pytorch(tmp_path, name):
    """Without the scratch inside of kernels, which for convolutions depends on the processor."""
    torch = pytest.importorskip("torch")
    from live_storages import count

    make, x = real_modules()[name]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)

    def step():
        optimizer.zero_grad()
        loss = model(x).mean()
        loss.backward()
        optimizer.step()

    _, real = count(step, [*model.parameters(), *model.buffers(), x])
    ranges = gs.simulate(sgd_step(tmp_path, name)).live_ranges
    live, made = ranges.sum_over_time(ranges.nbytes), ~ranges.source
    np.subtract.at(live, ranges.begin[made], ranges.nbytes[made])
    assert abs(int(live.max()) - max(boundary.before for boundary in real)) <= SCALARS


def test_roles_names_and_layers(tmp_path):
    m, output = resnet_block()
    graph = gs.load(m.save(tmp_path, output), batch=6)
    roles = {name: str(t.role) for name, t in graph.tensors.items()}
    assert (roles["image"], roles["c1.weight"], roles["b1.mean"]) == ("inputs", "parameters", "buffers")
    assert graph.name == "model"
    assert {op.layer for op in graph.ops} >= {"c1", "b1", "head"}
    assert graph.attributes["batch"] == 6
    assert gs.Graph.from_json(graph.to_json()).to_json() == graph.to_json()


# -- ops -------------------------------------------------------------------------------------------


def one(tmp_path, build, shape=(4, 6, 8), **parameters):
    """The graph of what *build* makes of a linear layer's result of *shape*."""
    m = Model(x=(FLOAT, list(shape)))
    y = build(m, m("MatMul", "x", m.weight("lin", shape[-1], shape[-1])))
    return gs.load(m.save(tmp_path, y), loss="none", **parameters)


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("Relu", "relu"), ("LeakyRelu", "leaky_relu"), ("Sigmoid", "sigmoid"), ("Tanh", "tanh"), ("Gelu", "gelu"),
        ("HardSwish", "hardswish"), ("HardSigmoid", "hardsigmoid"), ("Elu", "elu"), ("Selu", "selu"),
        ("Mish", "mish"), ("Softplus", "softplus"), ("Erf", "erf"), ("Exp", "exp"), ("Log", "log"),
        ("Sqrt", "sqrt"), ("Reciprocal", "reciprocal"), ("Neg", "neg"), ("Abs", "abs"), ("Sin", "sin"),
        ("Cos", "cos"), ("Softmax", "softmax"), ("LogSoftmax", "log_softmax"), ("Clip", "clamp"),
    ],
)  # fmt: skip
def test_functions(tmp_path, op, kind):
    graph = one(tmp_path, lambda m, x: m(op, x))
    assert [o.kind for o in graph.ops] == ["linear", kind]
    assert graph.tensors[graph.outputs[0]].shape == (4, 6, 8)


NUMBERS = {
    "add": ("Add", "shift"),
    "subtract": ("Sub", "shift"),
    "multiply": ("Mul", "scale"),
    "divide": ("Div", "scale"),
    "raise": ("Pow", "power"),
    "limit": ("Max", "clamp"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beside_a_tensor(tmp_path, name):
    op, kind = NUMBERS[name]
    graph = one(tmp_path, lambda m, x: m(op, x, m.constant("c", 2.0, "float32")))
    assert graph.ops[-1].kind == kind
    assert all(t.role is not gs.Role.BUFFER for t in graph.tensors.values())


def test_a_number_before_a_tensor(tmp_path):
    graph = one(tmp_path, lambda m, x: m("Sub", m.constant("c", 2.0, "float32"), x))
    assert graph.ops[-1].kind == "rsub"
    graph = one(tmp_path, lambda m, x: m("Div", m.constant("c", 2.0, "float32"), x))
    assert [op.kind for op in graph.ops[1:]] == ["reciprocal", "scale"]


MOVES = {
    "reshape": (lambda m, x: m("Reshape", x, m.constant("s", [0, -1])), ["reshape"], (4, 48)),
    "flatten": (lambda m, x: m("Flatten", x, axis=2), ["reshape"], (24, 8)),
    "unsqueeze": (lambda m, x: m("Unsqueeze", x, m.constant("a", [1])), ["reshape"], (4, 1, 6, 8)),
    "transpose": (lambda m, x: m("Transpose", x, perm=[0, 2, 1]), ["transpose"], (4, 8, 6)),
    "permute": (lambda m, x: m("Transpose", x, perm=[2, 0, 1]), ["permute"], (8, 4, 6)),
    "concat": (lambda m, x: m("Concat", x, m("Relu", x), axis=-1), ["relu", "concat"], (4, 6, 16)),
    "split": (lambda m, x: m("Split", x, axis=1, num_outputs=2, outputs=2)[1], ["split"], (4, 3, 8)),
    "slice": (lambda m, x: m("Slice", x, m.constant("b", [1]), m.constant("e", [5])), ["part"], (3, 6, 8)),
    "select": (lambda m, x: m("Gather", x, m.constant("i", 2), axis=1), ["select"], (4, 8)),
    "index": (lambda m, x: m("Gather", x, m.constant("i", [0, 2]), axis=1), ["index_select"], (4, 2, 8)),
    "expand": (lambda m, x: m("Expand", x, m.constant("s", [2, 1, 1, 1])), ["expand"], (2, 4, 6, 8)),
    "pad": (lambda m, x: m("Pad", x, m.constant("p", [0, 1, 2, 0, 0, 3])), ["pad"], (4, 7, 13)),
    "mean": (lambda m, x: m("ReduceMean", x, m.constant("a", [-1]), keepdims=0), ["mean"], (4, 6)),
    "sum": (lambda m, x: m("ReduceSum", x, m.constant("a", [0, 1])), ["sum"], (1, 1, 8)),
    "cast": (lambda m, x: m("Cast", x, to=TensorProto.FLOAT16), ["cast"], (4, 6, 8)),
    "where": (
        lambda m, x: m("Where", m("Greater", x, m.constant("z", 0.0, "float32")), x, m("Neg", x)),
        ["compute", "neg", "where"],
        (4, 6, 8),
    ),
    "dropout": (lambda m, x: m("Dropout", x, m.constant("r", 0.2, "float32")), ["dropout"], (4, 6, 8)),
    "identity": (lambda m, x: m("Identity", x), [], (4, 6, 8)),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(tmp_path, name):
    build, kinds, shape = MOVES[name]
    graph = one(tmp_path, build)
    assert [op.kind for op in graph.ops[1:]] == kinds
    assert graph.tensors[graph.outputs[0]].shape == shape
    assert gs.simulate(gs.training_step(graph, mode="evaluation")).peak > 0


def test_shape_arithmetic_is_folded(tmp_path):
    def build(m, x):
        batch = m("Unsqueeze", m("Gather", m("Shape", x), m.constant("i", 0)), m.constant("a", [0]))
        rest = m("Mul", m("Slice", m("Shape", x), m.constant("b", [1]), m.constant("e", [2])), m.constant("two", [2]))
        return m("Reshape", x, m("Concat", batch, rest, m.constant("l", [-1]), axis=0))

    graph = one(tmp_path, build)
    assert [op.kind for op in graph.ops] == ["linear", "reshape"]
    assert graph.tensors[graph.outputs[0]].shape == (4, 12, 4)


def test_a_branch_whose_condition_is_known_is_taken(tmp_path):
    def build(m, x):
        inner = [helper.make_node("Relu", [x], ["yes"])], [helper.make_node("Exp", [x], ["no"])]
        branches = [
            helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(nodes[0].output[0], FLOAT, None)])
            for nodes in inner
        ]
        known = m("Equal", m("Size", x), m.constant("n", 192))
        return m("If", known, then_branch=branches[0], else_branch=branches[1])

    assert [op.kind for op in one(tmp_path, build).ops] == ["linear", "relu"]


def test_what_exporters_take_apart_is_put_together(tmp_path):
    def gelu(m, x):
        y = m("Erf", m("Div", x, m.constant("r", 2**0.5, "float32")))
        y = m("Mul", x, m("Add", y, m.constant("one", 1.0, "float32")))
        return m("Mul", y, m.constant("half", 0.5, "float32"))

    assert [op.kind for op in one(tmp_path, gelu).ops] == ["linear", "gelu"]
    assert [op.kind for op in one(tmp_path, lambda m, x: m("Mul", x, m("Sigmoid", x))).ops] == ["linear", "silu"]
    graph = one(tmp_path, lambda m, x: m("Add", x, m.weight("bias", 8)))
    assert [(op.kind, op.attributes["bias"]) for op in graph.ops] == [("linear", True)]


def test_what_is_read_elsewhere_stays_apart(tmp_path):
    def build(m, x):
        gate = m("Sigmoid", x)
        return m("Add", m("Mul", x, gate), gate)

    assert [op.kind for op in one(tmp_path, build).ops] == ["linear", "sigmoid", "mul", "add"]


def test_attention_that_the_model_spells_out_stays_apart(tmp_path):
    def build(m, x):
        heads = m("Transpose", m("Reshape", x, m.constant("s", [4, 6, 2, 4])), perm=[0, 2, 1, 3])
        scores = m("MatMul", heads, m("Transpose", heads, perm=[0, 1, 3, 2]))
        weights = m("Softmax", m("Mul", scores, m.constant("c", 0.5, "float32")))
        return m("MatMul", weights, heads)

    kinds = [op.kind for op in one(tmp_path, build).ops]
    assert kinds == ["linear", "reshape", "transpose", "matmul", "scale", "softmax", "matmul"]


def test_a_tied_table_is_one_parameter(tmp_path):
    m = Model(ids=(INT, ["batch", 7]))
    table = m.weight("wte", 50, 32)
    h = m("Tanh", m("Gather", table, "ids"))
    graph = gs.load(m.save(tmp_path, m("MatMul", h, m("Transpose", table, perm=[1, 0]))), batch=3)
    assert [t.name for t in graph.tensors.values() if t.role is gs.Role.PARAMETER] == ["wte"]
    assert [op.kind for op in graph.ops] == ["embedding", "tanh", "linear", "mean"]


def test_asymmetric_padding_is_an_op_of_its_own(tmp_path):
    m = Model(x=(FLOAT, [2, 3, 9, 9]))
    y = m("Conv", "x", m.weight("w", 4, 3, 2, 2), auto_pad="SAME_UPPER", strides=[2, 2])
    graph = gs.load(m.save(tmp_path, y), loss="none")
    assert [op.kind for op in graph.ops] == ["pad", "conv2d"]
    assert graph.tensors[graph.outputs[0]].shape == (2, 4, 5, 5)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize("ways", [1, 2])
def test_recurrent_layers_have_pytorchs_parameters(tmp_path, kind, gates, ways):
    m = Model(x=(FLOAT, [5, "batch", 8]))
    weights = [m.weight(n, ways, gates * 6, width) for n, width in (("W", 8), ("R", 6))]
    y = m(kind, "x", *weights, m.weight("B", ways, 2 * gates * 6), hidden_size=6,
          direction="bidirectional" if ways == 2 else "forward", outputs=2)  # fmt: skip
    graph = gs.load(m.save(tmp_path, y[0]), loss="none", batch=3)
    parameters = sum(t.size for t in graph.tensors.values() if t.role is gs.Role.PARAMETER)
    assert parameters == ways * gates * 6 * (8 + 6 + 2)
    assert graph.tensors[graph.outputs[0]].shape == (5, ways, 3, 6)


# -- sizes and losses ------------------------------------------------------------------------------


def test_symbolic_dimensions_go_by_their_names(tmp_path):
    m = Model(ids=(INT, ["n", "t"]), image=(FLOAT, ["n", 3, "height", None]))
    path = m.save(tmp_path, m("Gather", m.weight("table", 9, 4), "ids"), m("Relu", "image"))
    graph = gs.load(path, batch=2, seq=5, height=8, **{"image.3": 7})
    assert (graph.tensors["ids"].shape, graph.tensors["image"].shape) == ((2, 5), (2, 3, 8, 7))
    with pytest.raises(UsageError, match="'t' of input 'ids' is symbolic: give it an extent, --seq N"):
        gs.load(path, batch=2)
    with pytest.raises(UsageError, match="'height' of input 'image' is symbolic: give it an extent, --set height=N"):
        gs.load(path, batch=2, seq=5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch": 0}, "'batch' must be a positive integer, not 0"),
        ({"hight": 3}, "no 'hight' to set"),
        ({"seq": 3}, "no symbolic dimension for 'seq'"),
        ({"loss": "l2"}, "'loss' cannot be 'l2'; known: cross_entropy, mean, none"),
    ],
)
def test_wrong_parameters(tmp_path, parameters, message):
    m, output = mlp()
    with pytest.raises(UsageError) as caught:
        gs.load(m.save(tmp_path, output), **parameters)
    assert message in str(caught.value)


@pytest.mark.parametrize(("shape", "labels"), [((6, 9), (6,)), ((6, 5, 9), (6, 5)), ((6, 9, 4, 4), (6, 4, 4))])
def test_labels_of_cross_entropy(tmp_path, shape, labels):
    m = Model(x=(FLOAT, list(shape)))
    y = m("Mul", "x", m.weight("w", shape[-1]))
    graph = gs.load(m.save(tmp_path, y), loss="cross_entropy")
    assert graph.tensors["labels"].shape == labels
    assert gs.simulate(gs.training_step(graph)).peak > 0


# -- strangers' files --------------------------------------------------------------------------------


def test_external_data_is_never_read(tmp_path):
    m, output = mlp()
    for tensor in m.initializers:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights/missing.bin")
    graph = gs.load(m.save(tmp_path, output), batch=2)
    assert sum(t.size for t in graph.tensors.values() if t.role is gs.Role.PARAMETER) == 48 * 64 + 64 + 64 * 65 + 650


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "a/../../b", "C:\\weights", "..\\weights"])
def test_a_file_that_names_data_outside_its_folder_is_refused(tmp_path, location):
    m, output = mlp()
    m.initializers[0].data_location = TensorProto.EXTERNAL
    m.initializers[0].external_data.add(key="location", value=location)
    with pytest.raises(SpecError, match="names data outside of the file's folder"):
        gs.load(m.save(tmp_path, output))


def wrong(change):
    m, output = mlp()
    proto = m.proto(output)
    change(proto)
    return proto.SerializeToString()


def unsupported(proto):
    proto.graph.node[1].op_type = "Det"
    proto.graph.node[1].input[0] = "square"
    proto.graph.initializer.append(TensorProto(name="square", data_type=FLOAT, dims=[4, 4]))


WRONG = {
    "empty": (b"", "no graph with nodes"),
    "text": (b"not a model", "not an ONNX file"),
    "cut off": (wrong(lambda p: None)[:-5], "not an ONNX file"),
    "unknown op": (wrong(lambda p: setattr(p.graph.node[1], "op_type", "Relv")), "node 'n1' (Relv): is no op of ONNX"),
    "other domain": (wrong(lambda p: setattr(p.graph.node[1], "domain", "com.microsoft")), "of the domain 'com.micro"),
    "unsupported": (wrong(unsupported), "node 'n1' (Det): Det has no counterpart among our ops: export the model"),
    "dangling": (wrong(lambda p: p.graph.node[1].input.__setitem__(0, "gone")), "reads 'gone', which no node before"),
    "shapes": (wrong(lambda p: p.graph.initializer[0].dims.__setitem__(1, 5)), "node 'n0' (Gemm): "),
    "huge": (wrong(lambda p: p.graph.initializer[0].dims.__setitem__(0, 2**60)), "beyond any real model"),
    "negative": (wrong(lambda p: p.graph.initializer[0].dims.__setitem__(0, -4)), "has a negative extent"),
    "text weights": (wrong(lambda p: setattr(p.graph.initializer[0], "data_type", 8)), "element type STRING"),
    "functions": (wrong(lambda p: p.functions.add(name="f")), "onnx.inliner.inline_local_functions"),
    "bytes": (wrong(lambda p: None).replace(b"n1", b"\xff\xfe"), "not UTF-8 text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(tmp_path, name):
    content, message = WRONG[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        gs.load(str(path))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(SpecError, match="No such file"):
        gs.load(str(tmp_path / "missing.onnx"))


def test_a_small_file_cannot_ask_for_a_large_constant(tmp_path):
    def build(m, x):
        return m("Add", x, m("ConstantOfShape", m.constant("s", [2**40, 2**40])))

    with pytest.raises(SpecError, match="beyond any real model"):
        one(tmp_path, build)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_one_of_our_errors(tmp_path, data):
    content = bytearray(wrong(lambda p: None))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    try:
        graph = gs.load(str(path), batch=2)
        gs.simulate(gs.training_step(graph))
    except GraphSimError:
        return
    assert graph.ops


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"graphsim-memory\[onnx\]"):
        gs.load(str(tmp_path / "model.onnx"))


# -- on the command line -----------------------------------------------------------------------------


def test_train_and_inference_on_the_command_line(tmp_path):
    m, output = vgg()
    path = m.save(tmp_path, output)
    peaks = {}
    for mode in ("train", "inference"):
        answer = graphsim("peak", path, "--batch", "8", "--mode", mode, "--target", "cpu", "--json")
        assert not answer.stderr
        report = json.loads(answer.stdout)
        assert (report["batch"], report["mode"], report["spec"]) == (8, mode, "model")
        assert report["provenance"]["params"]["loss"] == ("mean" if mode == "train" else "none")
        peaks[mode] = report["steady"]["peak_bytes"]
    assert peaks["inference"] < peaks["train"]


def test_a_wrong_file_on_the_command_line(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    answer = graphsim("peak", str(path))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"graphsim: {path}: not an ONNX file")
    assert answer.stderr.count("\n") == 1
