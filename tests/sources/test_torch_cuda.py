"""Steps captured for a GPU on any machine: against specs lowered by hand, PyTorch's rules, and published peaks."""

from __future__ import annotations

import csv
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from exhaustive import only  # noqa: E402
from test_specs_cnn import resnet18  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError, UnknownNameError, UsageError  # noqa: E402
from graphsim.sources import Steps  # noqa: E402
from graphsim.sources.spec import parse_spec  # noqa: E402
from graphsim.sources.torch.capture import capture, gpu  # noqa: E402

MIB = 2**20
PUBLISHED = Path(__file__).parent.parent / "data" / "measured_peaks_gpu.csv"


def autocast(loss, dtype=None):
    """A step whose forward pass runs under autocast to *dtype*, if given."""

    def step(model, batch, optimizer):
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=dtype) if dtype else nullcontext():
            value = loss(model, batch)
        value.backward()
        if optimizer is not None:
            optimizer.step()

    return step


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


def captured(model, batch, step, *, optimizer=adamw, device="a100-80g"):
    return capture(model, batch, optimizer=optimizer, loss=None, step=step, device=gpu("cuda", device)).graph()


def kinds(graph: gs.Graph) -> Counter[str]:
    return Counter(op.kind for op in graph.ops)


class Attention(nn.Module):
    def __init__(self, width=64, masked=False):
        super().__init__()
        self.qkv, self.masked = nn.Linear(128, 3 * 2 * width), masked

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 40, 3, 2, -1).permute(2, 0, 3, 1, 4)
        mask = torch.ones(40, 40, dtype=torch.bool, device=x.device).tril() if self.masked else None
        return functional.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.1).sum()


def attention(dtype, device, **options):
    graph = captured(
        lambda: Attention(**options),
        lambda: torch.randn(2, 40, 128),
        autocast(lambda model, x: model(x), dtype),
        device=device,
    )
    found = [name for name in kinds(graph) if "attention" in name and "backward" not in name]
    return found[0] if found else "math"


# -- two ways to the same step ---------------------------------------------------------------------


def small_gpt2():
    hf = pytest.importorskip("transformers")
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 300}
    return hf.GPT2LMHeadModel(hf.GPT2Config(use_cache=False, loss_type="ForCausalLM", **sizes))


def small_bert():
    hf = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}
    return hf.BertForMaskedLM(hf.BertConfig(vocab_size=300, **sizes))


def small_llama():
    hf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=2, vocab_size=300, use_cache=False, **sizes))


def tokens():
    ids, labels = torch.randint(0, 300, (2, 3, 48))
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones(3, 48, dtype=torch.int64)}


TEXT = {"batch": 3, "seq": 48, "layers": 2, "width": 64, "heads": 4, "vocab": 300}


def images():
    return torch.randn(2, 3, 96, 96), torch.randint(0, 2, (2,))


@pytest.mark.parametrize(
    ("device", "precision"),
    only(
        [("t4", "amp-fp16"), ("a100-80g", "amp-bf16")],
        [("t4", "fp32"), ("t4", "amp-fp16"), ("a100-80g", "fp32"), ("a100-80g", "amp-fp16"), ("a100-80g", "amp-bf16")],
    ),
)
@pytest.mark.parametrize(
    ("spec", "params", "model", "batch"),
    [
        ("gpt2", TEXT, small_gpt2, tokens),
        ("bert_base", TEXT, small_bert, tokens),
        ("llama3_8b", {**TEXT, "kv_heads": 2, "hidden": 96}, small_llama, tokens),
        ("resnet18", {"batch": 2, "size": 96}, resnet18, images),
    ],
)
def test_a_spec_lowered_by_hand_and_a_capture_have_the_same_peaks(spec, params, model, batch, device, precision):
    """Within 0.1 % and 2 kB: two derivations that share no rule but attention's scratch."""

    def loss(model, batch):
        if spec == "resnet18":
            return functional.cross_entropy(model(batch[0]), batch[1])
        return model(**batch).loss

    dtype = {"fp32": None, "amp-fp16": torch.float16, "amp-bf16": torch.bfloat16}[precision]
    graph = captured(model, batch, autocast(loss, dtype), device=device)
    ours = gs.simulate(graph).phase_peaks()
    step = gs.training_step(gs.load(spec, **params), optimizer="adamw", precision=precision, device=device)
    hand = gs.simulate(step).phase_peaks()
    for phase in ("forward", "backward", "optimizer"):
        assert ours[phase] == pytest.approx(hand[phase], rel=1e-3, abs=2048), phase


# -- what is different on CUDA ---------------------------------------------------------------------


def test_dropout_is_one_kernel_with_a_mask_of_booleans():
    graph = captured(
        lambda: nn.Dropout(0.5), lambda: torch.randn(8, 8, requires_grad=True), autocast_sum(), optimizer=None
    )
    (dropout,) = (op for op in graph.ops if op.kind == "native_dropout")
    assert graph.tensors[dropout.outputs[1]].dtype == "bool"


def autocast_sum():
    return autocast(lambda model, x: model(x).sum(), None)


@pytest.mark.parametrize(
    ("dtype", "device", "masked", "kernel"),
    [
        (torch.float16, "a100-80g", False, "_scaled_dot_product_flash_attention"),
        (torch.bfloat16, "h100-80g", False, "_scaled_dot_product_flash_attention"),
        (torch.float16, "a100-80g", True, "_scaled_dot_product_efficient_attention"),
        (torch.float16, "t4", False, "_scaled_dot_product_efficient_attention"),
        (None, "a100-80g", False, "_scaled_dot_product_efficient_attention"),
    ],
)
def test_attention_is_the_kernel_of_the_device_and_the_dtype(dtype, device, masked, kernel):
    assert attention(dtype, device, masked=masked) == kernel


def test_ctc_is_refused_in_one_line():
    class Speech(nn.Module):
        def forward(self, x, labels):
            return functional.ctc_loss(x.log_softmax(-1), labels, torch.full((2,), 6), torch.full((2,), 3))

    with pytest.raises(CaptureError, match=r"test_torch_cuda\.py:\d+: ctc_loss on CUDA reads lengths on the host"):
        gs.from_torch(
            Speech, lambda: (torch.randn(6, 2, 8), torch.ones(2, 3, dtype=torch.int64)), optimizer=None, target="cuda"
        )


def test_an_error_while_gradients_are_made_is_an_error_and_no_end_of_the_process():
    """PyTorch gives its streams back while the error is under way, in functions that must not raise."""

    def unpack(_):
        raise ValueError("a hook that fails")

    class Hooked(nn.Module):
        def forward(self, x):
            with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, unpack):
                return x.exp().sum()

    with pytest.raises(CaptureError, match="a hook that fails"):
        gs.from_torch(
            Hooked(), lambda: torch.randn(4, requires_grad=True), optimizer=None, loss=lambda y, *_: y, target="cuda"
        )


@pytest.mark.parametrize(
    ("loss", "shape", "labels"),
    [
        (functional.multi_margin_loss, (4, 5), torch.zeros(4, dtype=torch.int64)),
        (functional.multilabel_margin_loss, (4, 5), torch.zeros(4, 5, dtype=torch.int64)),
        (lambda x, _: functional.fractional_max_pool3d(x, 2, output_size=3).sum(), (2, 3, 8, 8, 8), torch.zeros(1)),
    ],
    ids=["multi_margin_loss", "multilabel_margin_loss", "fractional_max_pool3d"],
)
def test_gradients_without_a_fake_kernel_are_as_large_as_the_input(loss, shape, labels):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(shape))

        def forward(self, labels):
            return loss(self.scale * 1, labels)

    steps = gs.from_torch(Scaled, lambda: labels, optimizer=None, loss=lambda y, *_: y, target="cuda")
    (gradient,) = (op for op in steps.ops if op.kind.endswith("_backward") and op.kind != "expand_backward")
    assert steps.tensors[gradient.outputs[0]].shape == shape


def test_an_op_without_a_fake_kernel_is_refused_on_every_build():
    """PyTorch would try the kernel itself, which a CPU build lacks and which in a CUDA build calls the driver."""

    class Sparse(nn.Module):
        def forward(self, x):
            return x.to_sparse().sum()

    with pytest.raises(CaptureError, match=r"_to_sparse\S* has no fake kernel"):
        gs.from_torch(Sparse(), lambda: torch.eye(4), optimizer=None, loss=lambda y, *_: y, target="cuda")


def test_a_sparse_tensor_is_refused_in_one_line():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.graph = nn.Parameter(torch.eye(4)), torch.eye(4).to_sparse_csr()

        def forward(self, x):
            return torch.sparse.mm(self.graph, self.weight).sum()

    with pytest.raises(CaptureError, match=r"layout sparse_csr has no storage .*: make it dense"):
        gs.from_torch(Sparse, lambda: torch.eye(4), optimizer=None, loss=lambda y, *_: y, target="cpu")


def test_heads_that_flash_attention_cannot_take_are_padded():
    graph = captured(
        lambda: Attention(width=20),
        lambda: torch.randn(2, 40, 128),
        autocast(lambda model, x: model(x), torch.float16),
    )
    (flash,) = (op for op in graph.ops if op.kind == "_scaled_dot_product_flash_attention")
    assert graph.tensors[flash.outputs[0]].shape[-1] == 24


def test_autocast_casts_by_the_list_of_cuda():
    class Cube(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            return self.linear(x).pow(3).sum()

    graph = captured(Cube, lambda: torch.randn(4, 16), autocast(lambda model, x: model(x), torch.float16))
    (power,) = (op for op in graph.ops if op.kind == "pow" and op.phase is gs.Phase.FORWARD)
    (product,) = (op for op in graph.ops if op.kind == "addmm")
    assert graph.tensors[power.outputs[0]].dtype == "float32"
    assert graph.tensors[product.outputs[0]].dtype == "float16"


def test_optimizers_run_over_lists_of_tensors():
    graph = captured(lambda: nn.Linear(8, 8), lambda: torch.randn(2, 8), autocast_sum())
    assert kinds(graph)["_foreach_sqrt"] == 1
    assert graph.attributes["training"]["optimizer_impl"] == "foreach"


def test_what_stays_on_the_host_takes_no_memory_of_the_gpu():
    """Optimizer counters are CPU tensors (torch/optim/adam.py)."""
    graph = captured(lambda: nn.Linear(8, 8), lambda: torch.randn(2, 8), autocast_sum())
    states = {t.name: t.nbytes for t in graph.tensors.values() if t.role is gs.Role.OPTIMIZER_STATE}
    assert states == {
        "weight.step": 0, "weight.exp_avg": 256, "weight.exp_avg_sq": 256,
        "bias.step": 0, "bias.exp_avg": 32, "bias.exp_avg_sq": 32,
    }  # fmt: skip


@pytest.mark.parametrize(("device", "nbytes"), [("t4", 8_519_680), ("a100-80g", 8_519_680), ("h100-80g", 32 * MIB)])
def test_cublas_keeps_a_workspace_for_each_thread_in_which_cublaslt_works_too(device, nbytes):
    made = capture(
        lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False)),
        lambda: torch.randn(2, 8),
        optimizer=adamw,
        loss=None,
        step=autocast_sum(),
        device=gpu("cuda", device),
    )
    for first in (True, False):
        graph = made.graph(first=first)
        kept = {t.name: t.nbytes for t in graph.tensors.values() if t.role is gs.Role.LIBRARY}
        assert kept == {"cublas.forward": nbytes, "cublas.backward": nbytes}
        made_here = {name for op in graph.ops for name in op.outputs} & kept.keys()
        assert made_here == (kept.keys() if first else set())


TWIN = """
[inputs]
x = { shape = [32, 64] }
labels = { shape = [32], dtype = "int64" }
[model]
layers = [{ op = "linear", out = 128 }, "relu", { op = "linear", out = 10 }, { op = "cross_entropy", with = "labels" }]
"""


@pytest.mark.parametrize("device", ["a100-80g", "h100-80g", "b200"])
def test_specs_hold_the_workspaces_of_libraries_as_their_captured_twins_do(device):
    """The same bytes, made by the same ops in the same order, and with them the same peaks."""
    made = capture(
        lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)),
        lambda: (torch.randn(32, 64), torch.randint(0, 10, (32,))),
        optimizer=adamw,
        loss=None,
        step=autocast(lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1])),
        device=gpu("cuda", device),
    )
    for first in (True, False):
        spec = gs.training_step(parse_spec(TWIN), optimizer="adamw", device=device, first=first)
        twin = made.graph(first=first)
        assert gs.simulate(spec).peak == gs.simulate(twin).peak
        assert libraries(spec) == libraries(twin)
        assert len(libraries(spec)) == 2


def libraries(graph):
    """Name, bytes and, if it is made in the step, the op that makes each workspace."""
    maker = {name: (op.kind, str(op.phase)) for op in graph.ops for name in op.outputs}
    return [(t.name, t.nbytes, maker.get(t.name)) for t in graph.tensors.values() if t.role is gs.Role.LIBRARY]


@pytest.mark.parametrize("mode", ["evaluation", "inference"])
def test_without_a_backward_pass_one_thread_makes_products(mode):
    step = gs.training_step(parse_spec(TWIN), mode=mode)
    assert libraries(step) == [("cublas.forward", 8_519_680, ("addmm", "forward"))]
    assert "cublas.forward" in step.outputs  # it stays


def test_gradients_of_an_optimizer_that_the_step_makes_are_freed_when_it_says_so():
    def training():
        model = nn.Linear(64, 64, bias=False, device="cuda")
        optimizer = torch.optim.SGD(model.parameters())
        while True:
            optimizer.zero_grad()
            model(torch.ones(2, 64, device="cuda")).sum().backward()
            optimizer.step()
            yield

    calls = training()
    graph = captured(nn.Identity, lambda: torch.zeros(0), lambda *_: next(calls), optimizer=None)
    owned = [t.name for t in graph.tensors.values() if t.nbytes == 64 * 64 * 4 and not t.storage]
    assert len(owned) == 2  # the weight, and the gradient of this step


def test_a_tensor_that_code_makes_on_the_cpu_stays_there():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return (x * self.scale + torch.tensor(2.0) + torch.zeros(4, device="cuda")).sum()

    graph = captured(Shifted, lambda: torch.randn(4), autocast_sum())
    assert gs.simulate(graph).peak < 1000


def test_real_modules_are_left_as_they_were():
    net = nn.Linear(4, 4)
    before = net.weight
    graph = gs.from_torch(net, torch.randn(2, 4), target="cuda", device="t4", loss=torch.sum)
    assert graph.attributes["training"]["device"] == "t4"
    assert net.weight is before
    assert net.weight.device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_of_the_pretence_is_left():
    before = torch.accelerator.current_accelerator()
    gs.from_torch(nn.Linear(4, 4), torch.randn(2, 4), target="cuda", loss=torch.sum)
    assert not torch.cuda.is_available()
    assert not torch.cuda.is_initialized()
    assert torch.accelerator.current_accelerator() == before
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1, device="cuda")
    x = torch.ones(3, requires_grad=True)
    functional.silu(x).sum().backward()
    assert x.grad is not None


def test_wrong_targets_are_refused():
    with pytest.raises(UsageError, match="cpu, cuda"):
        gpu("tpu")
    with pytest.raises(UnknownNameError):
        gpu("cuda", "a100-8g")
    with pytest.raises(UsageError, match="target 'cuda'"):
        gpu("cpu", "t4")


# -- published measurements ------------------------------------------------------------------------


def published(name: str) -> list[dict[str, str]]:
    with PUBLISHED.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["model"].startswith(name)]


def held(model, batch, step, optimizer, device):
    made = capture(model, batch, optimizer=optimizer, loss=None, step=step, device=gpu("cuda", device))
    return gs.peak(Steps(made.graph(first=True), made.graph()), allocator="torch").steady


@pytest.mark.parametrize("row", published("cross_entropy"), ids=lambda row: row["model"])
def test_cross_entropy_on_an_a100_is_exact_to_the_byte(row):
    rows, classes = (int(part.partition("=")[2]) for part in row["model"].split()[1:3])
    batch = lambda: (torch.randn(rows, classes).requires_grad_(), torch.randint(0, classes, (rows,)))  # noqa: E731
    step = autocast(lambda model, batch: model(*batch))
    report = held(nn.CrossEntropyLoss, batch, step, None, "a100-80g")
    assert report.allocated_peak_bytes == int(row["max_memory_allocated"])


def test_distilbert_on_a_t4_is_as_measured():
    hf = pytest.importorskip("transformers")
    (row,) = published("distilbert")
    ids = lambda: torch.randint(0, 30000, (int(row["batch"]), int(row["sequence_or_image"])))  # noqa: E731

    def step(model, ids, optimizer):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.float16):
            out = model(input_ids=ids)
            loss = out.last_hidden_state.float().pow(2).mean()
        loss.backward()
        optimizer.step()

    report = held(lambda: hf.DistilBertModel(hf.DistilBertConfig()), ids, step, adamw, "t4")
    assert report.allocated_peak_bytes == pytest.approx(int(row["max_memory_allocated"]), rel=0.005)
    assert report.reserved_peak_bytes == pytest.approx(int(row["max_memory_reserved"]), rel=0.02)
