"""Training loops of published measurements: GPUMemNet's, xMem's, and torch-preflight's calibration.

Generators as in workloads_liger: every ``next`` is one iteration, and names stay bound between iterations as in those
scripts' loops (the outputs of the iteration before live until they are replaced). What the scripts run before they
train (summaries, a first forward pass) runs before the first iteration. Each says which script it rebuilds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Calls = Iterator[None]
CUDA = "cuda"


# -- itu-rad/GPUMemNet: NeuroNetGen_scripts, Test_Pipeline -------------------------------------------

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}


def classify(model: nn.Module, optimizer: Any, batch: Callable[[], tuple[Any, Any]]) -> Calls:
    """Train *model* on batches that come from the host."""
    while True:
        inputs, labels = (t.to(CUDA) for t in batch())
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = functional.cross_entropy(outputs, labels)
        loss.backward()
        optimizer.step()
        yield


def mlp(model: str, config: str) -> Calls:
    """mlp_next.py: ``input:211_output:19_depth:1_arch:pyramid_batch:163_act:gelu_dropout:0.4_dropout:...``."""
    pairs = re.findall(r"([a-z]+):([^_]+(?:_relu)?)", config)
    read = dict(pairs)
    rate, dropout = (value for name, value in pairs if name == "dropout")
    inputs, outputs, depth = int(read["input"]), int(read["output"]), int(read["depth"])
    layers: list[nn.Module] = []
    width = inputs
    for _ in range(depth):
        wider = {
            "pyramid": max(width // 2, outputs),
            "bottleneck": max(width // 2, outputs),
            "uniform": width,
            "gradual": max(width - (inputs - outputs) // depth, outputs),
        }[read["arch"]]
        layers.append(nn.Linear(width, wider))
        layers += [nn.BatchNorm1d(wider)] if read["batchnorm"] == "True" else []
        layers.append(ACTIVATIONS[read["act"]]())
        layers += [nn.Dropout(float(rate))] if dropout == "True" else []
        width = wider
    net = nn.Sequential(*layers, nn.Linear(width, outputs), nn.Softmax(dim=1)).to(CUDA)
    net(torch.rand(2, inputs).to(CUDA))  # torchsummary
    batch = int(read["batch"])
    yield from classify(
        net,
        torch.optim.Adam(net.parameters()),
        lambda: (torch.randn(batch, inputs), torch.randint(0, outputs, (batch,))),
    )


class Encoder(nn.Module):
    """transformer.py, architecture "standard"."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, inner: int, length: int, out: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(1, length, width))
        layer = nn.TransformerEncoderLayer(width, heads, inner, 0.1, batch_first=True)
        self.model = nn.TransformerEncoder(layer, layers)
        self.out = nn.Linear(width, out)

    def forward(self, x: Any) -> Any:
        x = self.embedding(x) + self.positions
        x = self.model(x)
        x = x.mean(dim=1)
        return self.out(x)


def transformer(model: str, config: str) -> Calls:
    """transformer.py: ``b64 s512 e128 l8 h8 ff332 v553893 c273``."""
    read = {name: int(value) for name, value in re.findall(r"([a-z]+)(\d+)", config)}
    sizes = (read[name] for name in ("v", "e", "l", "h", "ff", "s", "c"))
    net = Encoder(*sizes).to(CUDA)
    shape = read["b"], read["s"]
    mock = torch.randint(0, read["v"], shape).to(CUDA)
    net(mock)
    net(mock)  # its summary
    yield from classify(
        net,
        torch.optim.Adam(net.parameters()),
        lambda: (torch.randint(0, read["v"], shape), torch.randint(0, read["c"], (read["b"],))),
    )


def _block(inputs: int, outputs: int, activation: str, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), ACTIVATIONS[activation]())


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, activation: str, stride: int) -> None:
        super().__init__()
        self.first = _block(inputs, outputs, activation, stride)
        self.second = _block(outputs, outputs, activation)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Any) -> Any:
        residual = self.shortcut(x)
        x = self.first(x)
        x = self.second(x)
        return x + residual


def cnn(model: str, config: str) -> Calls:
    """cnn.py: ``uniform d22 f98 b62 174 gelu``, without batch norm and dropout; 550 classes (the rows do not say)."""
    shape, depth_, filters_, batch_, size_, activation = config.split()
    depth, filters, batch, size = (int(part.lstrip("dfb")) for part in (depth_, filters_, batch_, size_))
    most, channels, layers, extent = 2048, 3, list[nn.Module](), size
    if shape == "residual":
        for number in range(depth // 2):
            wider = min(int(filters * ((most / filters) ** (1 / depth)) ** number), most)
            stride = 2 if number % 2 and extent > 7 else 1
            layers.append(_Residual(channels, wider, activation, stride))
            channels, extent = wider, extent // stride
            if extent <= 7:
                break
    else:
        for number in range(depth):
            wider = filters
            down = depth // 2
            if shape == "hourglass" and number < down:
                wider = min(int(filters * ((most / filters) ** (1 / down)) ** number), most)
            elif shape == "hourglass":
                shrink = (most / filters) ** (1 / (depth - down))
                wider = max(int(filters * shrink ** (depth - number - 1)), filters)
            layers.append(_block(channels, wider, activation))
            channels = wider
    classes = 550
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes), nn.Softmax(dim=1)]
    net = nn.Sequential(*layers, *head).to(CUDA)
    net(torch.rand(batch, 3, size, size).to(CUDA))  # torchinfo
    yield from classify(
        net,
        torch.optim.Adam(net.parameters()),
        lambda: (torch.randn(batch, 3, size, size), torch.randint(0, classes, (batch,))),
    )


class _Inverted(nn.Module):
    """A block of MobileNetV2; MNASNet's is without the activations' upper bound."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int, kernel: int, activation: Any) -> None:
        super().__init__()
        inner = inputs * factor
        layers: list[nn.Module] = []
        if factor != 1:
            layers += [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), activation(inplace=True)]
        pad = kernel // 2
        layers += [nn.Conv2d(inner, inner, kernel, stride, pad, groups=inner, bias=False), nn.BatchNorm2d(inner)]
        layers += [activation(inplace=True), nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers, self.residual = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        return x + self.layers(x) if self.residual else self.layers(x)


def mobilenet_v2() -> nn.Module:
    """As torchvision's."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)]
    channels = 32
    for factor, width, repeats, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for number in range(repeats):
            layers.append(_Inverted(channels, width, stride if not number else 1, factor, 3, nn.ReLU6))
            channels = width
    layers += [nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000))


def mnasnet() -> nn.Module:
    """As torchvision's mnasnet1_0."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16)]
    channels = 16
    for kernel, factor, width, repeats, stride in (
        (3, 3, 24, 3, 2), (5, 3, 40, 3, 2), (5, 6, 80, 3, 2), (3, 6, 96, 2, 1), (5, 6, 192, 4, 2), (3, 6, 320, 1, 1),
    ):  # fmt: skip
        for number in range(repeats):
            layers.append(_Inverted(channels, width, stride if not number else 1, factor, kernel, nn.ReLU))
            channels = width
    layers += [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU(inplace=True)]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2, inplace=True), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *pooled)


def _network(name: str) -> nn.Module:
    from torch_truth import resnet50, vgg16

    def resnet152() -> nn.Module:
        return resnet50(blocks=(3, 8, 36, 3))

    makers: dict[str, Callable[[], nn.Module]] = {
        "vgg16": vgg16,
        "resnet50": resnet50,
        "resnet152": resnet152,
        "mobilenetv2": mobilenet_v2,
        "mnasnet": mnasnet,
    }
    return makers[name.lower()]()


def imagenet(model: str, config: str) -> Calls:
    """Test_Pipeline/models: ``b32 fp32 Adam``, after a summary of two images."""
    batch = int(config.split()[0][1:])
    net = _network(model).to(CUDA)
    net(torch.rand(2, 3, 224, 224).to(CUDA))
    yield from classify(
        net,
        torch.optim.Adam(net.parameters(), lr=0.001),
        lambda: (torch.rand(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))),
    )


# -- Stone-ResearchLife/xMem: exp/trainer/train_loop.py ----------------------------------------------


def xmem_cnn(model: str, config: str) -> Calls:
    """``SGD b684 86x86 fp32``; gradients are set to None first (the rows do not say when), 1000 classes."""
    kind, batch_ = config.split()[:2]
    batch = int(batch_[1:])
    net = _network(model).to(CUDA)
    yield from classify(
        net,
        getattr(torch.optim, kind)(net.parameters(), lr=0.001),
        lambda: (torch.rand(batch, 3, 86, 86), torch.randint(0, 1000, (batch,))),
    )


def _language_model(name: str) -> Any:
    import transformers as hf

    if name == "distilgpt2":
        return hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=6))
    if name == "T5-small":
        return hf.T5ForConditionalGeneration(hf.T5Config(decoder_start_token_id=0, pad_token_id=0))
    qwen = hf.Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    return hf.Qwen3ForCausalLM(qwen)


def xmem_language(model: str, config: str) -> Calls:
    """``AdamW b10 s128 fp32``: ids, mask and labels, all of them."""
    kind, batch_, length_ = config.split()[:3]
    shape = int(batch_[1:]), int(length_[1:])
    net = _language_model(model).to(CUDA)
    net.train()
    optimizer = getattr(torch.optim, kind)(net.parameters(), lr=0.001)
    while True:
        optimizer.zero_grad()
        ids = torch.randint(0, 30000, shape)
        batch = {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64), "labels": ids.clone()}
        batch = {name: t.to(CUDA) for name, t in batch.items()}
        outputs = net(**batch)
        loss = outputs.loss
        loss.backward()
        optimizer.step()
        yield


# -- highwaterlabs/torch-preflight: tests/calibration/measure_cuda.py --------------------------------


def preflight(model: str, config: str) -> Calls:
    """``8x256 autocast bf16 AdamW torch 2.11``: what its script trains on a T4."""
    import transformers as hf

    batch, extent = (int(part) for part in config.split()[0].split("x"))
    dtype = torch.bfloat16 if " bf16 " in config else torch.float16
    kinds = {
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config()),
        "distilbert-base-uncased": lambda: hf.DistilBertModel(hf.DistilBertConfig()),
        "bert-base-uncased": lambda: hf.BertModel(hf.BertConfig()),
    }
    net = kinds[model]().to(CUDA) if model in kinds else _network(model).to(CUDA)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
    images = model not in kinds
    x = (
        torch.randn(batch, 3, extent, extent, device=CUDA)
        if images
        else torch.randint(0, 30000, (batch, extent)).to(CUDA)
    )
    target = torch.randint(0, 1000, (batch,)).to(CUDA) if images else None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(CUDA, dtype=dtype):
            if images:
                loss = functional.cross_entropy(net(x), target)
            elif model == "gpt2":
                out = net(input_ids=x, labels=x)
                loss = out.loss
            else:
                out = net(input_ids=x)
                loss = out.last_hidden_state.float().pow(2).mean()
        loss.backward()
        optimizer.step()

    while True:
        step()
        yield


SOURCES: dict[str, Callable[[str, str], Calls]] = {
    "torch-preflight": preflight,
    "torch-preflight hold-out": preflight,
    "GPUMemNet MLP": mlp,
    "GPUMemNet Transformer": transformer,
    "GPUMemNet CNN": cnn,
    "GPUMemNet ImageNet": imagenet,
    "xMem CNN": xmem_cnn,
    "xMem Transformer": xmem_language,
    "xMem LLM (Colab)": xmem_language,
}
"""By the source of the rows: (model, config) -> calls."""
