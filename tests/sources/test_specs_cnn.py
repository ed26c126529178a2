"""The CNN specs against plain torch modules: parameters, and the bytes of a real forward and backward pass."""

from __future__ import annotations

import pytest
from oracle import assert_close

import graphsim as gs

torch = pytest.importorskip("torch")
nn = torch.nn

PARAMETERS = {
    "seed_cnn": 19_072_984,
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "mobilenet_v2": 3_504_872,
    "densenet121": 7_978_856,
    "efficientnet_b0": 5_288_548,
    "unet": 31_037_698,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_published(name):
    tensors = gs.load(name).tensors.values()
    assert sum(t.size for t in tensors if t.role is gs.Role.PARAMETER) == PARAMETERS[name]


def conv(cin, out, kernel=1, stride=1, groups=1, act=None):
    layers = [nn.Conv2d(cin, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


class Residual(nn.Module):
    """act(branch(x) + shortcut(x)), added in place."""

    def __init__(self, branch, shortcut=None, act=None, inplace=True):
        super().__init__()
        self.branch, self.shortcut, self.act = branch, shortcut, act and act(inplace=True)
        self.inplace = inplace

    def forward(self, x):
        out = self.branch(x)
        other = self.shortcut(x) if self.shortcut else x
        if self.inplace:
            out += other
        else:
            out = other + out
        return self.act(out) if self.act else out


def head(width, dropout=0.0, size=1):
    return [nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, 1000)]


def resnet18():
    def block(cin, out, stride):
        branch = nn.Sequential(conv(cin, out, 3, stride, act=nn.ReLU), conv(out, out, 3))
        return Residual(branch, conv(cin, out, 1, stride) if stride > 1 else None, nn.ReLU)

    stages = [
        block(cin, out, stride)
        for cin, out, stride in (
            (64, 64, 1),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 256, 2),
            (256, 256, 1),
            (256, 512, 2),
            (512, 512, 1),
        )
    ]
    return nn.Sequential(conv(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1), *stages, *head(512))


def mobilenet_v2():
    layers = [conv(3, 32, 3, 2, act=nn.ReLU6), conv(32, 32, 3, groups=32, act=nn.ReLU6), conv(32, 16)]
    channels = 16
    for out, depth, stride in ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)):
        for i in range(depth):
            wide = 6 * channels
            branch = nn.Sequential(
                conv(channels, wide, act=nn.ReLU6),
                conv(wide, wide, 3, stride if i == 0 else 1, groups=wide, act=nn.ReLU6),
                conv(wide, out),
            )
            layers.append(Residual(branch, inplace=False) if i else branch)
            channels = out
    return nn.Sequential(*layers, conv(320, 1280, act=nn.ReLU6), *head(1280, 0.2))


class DenseLayer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 32, 3, padding=1, bias=False),
        )

    def forward(self, x):
        return torch.cat([x, self.branch(x)], 1)


def densenet121():
    layers = [conv(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(DenseLayer(channels))
            channels += 32
        if stage < 3:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *head(channels))


class Excite(nn.Module):
    def __init__(self, width, squeeze):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, squeeze, 1),
            nn.SiLU(inplace=True),
            nn.Conv2d(squeeze, width, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return self.gate(x) * x


def efficientnet_b0():
    def separable(wide, squeeze, out, kernel, stride):
        return [conv(wide, wide, kernel, stride, wide, act=nn.SiLU), Excite(wide, squeeze), conv(wide, out)]

    layers = [conv(3, 32, 3, 2, act=nn.SiLU), *separable(32, 8, 16, 3, 1)]
    channels = 16
    for out, depth, kernel, stride in (
        (24, 2, 3, 2),
        (40, 2, 5, 2),
        (80, 3, 3, 2),
        (112, 3, 5, 1),
        (192, 4, 5, 2),
        (320, 1, 3, 1),
    ):
        for i in range(depth):
            wide = 6 * channels
            branch = nn.Sequential(
                conv(channels, wide, act=nn.SiLU),
                *separable(wide, channels // 4, out, kernel, stride if i == 0 else 1),
            )
            layers.append(Residual(branch) if i else branch)
            channels = out
    return nn.Sequential(*layers, conv(320, 1280, act=nn.SiLU), *head(1280, 0.2))


class UNet(nn.Module):
    def __init__(self, width=64):
        super().__init__()

        def double(cin, out):
            return nn.Sequential(conv(cin, out, 3, act=nn.ReLU), conv(out, out, 3, act=nn.ReLU))

        widths = [width * 2**i for i in range(5)]
        self.down = nn.ModuleList(double(cin, out) for cin, out in zip([3, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.lift = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[:4])
        self.up = nn.ModuleList(double(2 * w, w) for w in widths[:4])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            skips.append(x)
        for i in (3, 2, 1, 0):
            x = self.up[i](torch.cat([skips[i], self.lift[i](x)], 1))
        return self.head(x)


@pytest.mark.parametrize(
    ("name", "module", "size"),
    [
        ("resnet18", resnet18, 96),
        ("mobilenet_v2", mobilenet_v2, 96),
        ("densenet121", densenet121, 96),
        ("efficientnet_b0", efficientnet_b0, 96),
        ("unet", UNet, 64),
    ],
)
def test_a_spec_allocates_what_the_module_allocates(name, module, size):
    net = module()
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    image = torch.randn(2, 3, size, size)
    label = torch.randint(0, 2, (2, size, size) if name == "unet" else (2,))
    assert_close(
        lambda: nn.functional.cross_entropy(net(image), label), gs.load(name, batch=2, size=size), relative=0.005
    )
