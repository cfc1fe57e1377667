"""Networks with normalization layers, in plain torch and a few channels wide."""

from __future__ import annotations

import itertools

import torch
from torch import nn


class ResnetBlock(nn.Module):
    """Residual block of CycleGAN: two times padding, convolution and norm, plus the input."""

    def __init__(self, channels):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(True),
            nn.Dropout(0.5),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x):
        return x + self.conv_block(x)


def cyclegan_generator(width=4, blocks=9):
    def step(convolution, channels):
        return [convolution, nn.InstanceNorm2d(channels), nn.ReLU(True)]

    layers = [nn.ReflectionPad2d(3), *step(nn.Conv2d(3, width, 7), width)]
    for c in (width, 2 * width):
        layers += step(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), 2 * c)
    layers += [ResnetBlock(4 * width) for _ in range(blocks)]
    for c in (4 * width, 2 * width):
        layers += step(nn.ConvTranspose2d(c, c // 2, 3, 2, padding=1, output_padding=1), c // 2)
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())


class UnetBlock(nn.Module):
    """Block of pix2pix's U-Net. The inner block's first activation overwrites its input."""

    def __init__(self, outer, inner, inside=None, outermost=False):
        super().__init__()
        down = [nn.LeakyReLU(0.2, True), nn.Conv2d(outer, inner, 4, 2, 1, bias=False)]
        up = [nn.ReLU(True)]
        if outermost:
            down, last = [nn.Conv2d(3, inner, 4, 2, 1)], [nn.Tanh()]
            up += [nn.ConvTranspose2d(2 * inner, 3, 4, 2, 1)]
        elif inside is None:
            last = [nn.BatchNorm2d(outer)]
            up += [nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=False)]
        else:
            down.append(nn.BatchNorm2d(inner))
            last = [nn.BatchNorm2d(outer), nn.Dropout(0.5)]
            up += [nn.ConvTranspose2d(2 * inner, outer, 4, 2, 1, bias=False)]
        self.outermost = outermost
        self.model = nn.Sequential(*down, *([] if inside is None else [inside]), *up, *last)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


def pix2pix_unet():
    return UnetBlock(3, 4, UnetBlock(4, 8, UnetBlock(8, 8, UnetBlock(8, 8))), outermost=True)


class ConvDropoutNorm(nn.Module):
    """Block of nnU-Net. Its modules are attributes, and the forward calls them as a Sequential."""

    def __init__(self, inputs, outputs, stride=1, size=3, activation=True):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, size, stride, size // 2)
        self.norm = nn.InstanceNorm3d(outputs, affine=True)
        parts = [self.conv, self.norm]
        if activation:
            self.nonlin = nn.LeakyReLU(0.01, inplace=True)
            parts.append(self.nonlin)
        self.all_modules = nn.Sequential(*parts)

    def forward(self, x):
        return self.all_modules(x)


class ResidualBlock3d(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = ConvDropoutNorm(inputs, outputs, stride)
        self.conv2 = ConvDropoutNorm(outputs, outputs, activation=False)
        self.nonlin2 = nn.LeakyReLU(0.01, inplace=True)
        self.skip = nn.Sequential(
            nn.AvgPool3d(stride) if stride > 1 else nn.Identity(),
            ConvDropoutNorm(inputs, outputs, size=1, activation=False),
        )

    def forward(self, x):
        return self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))


class ResidualUnet3d(nn.Module):
    def __init__(self, features=(4, 6, 8)):
        super().__init__()
        self.stem = ConvDropoutNorm(1, features[0])
        steps = list(itertools.pairwise(features))
        self.down = nn.ModuleList(ResidualBlock3d(a, b, 2) for a, b in steps)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for a, b in steps)
        self.merge = nn.ModuleList(ConvDropoutNorm(2 * a, a) for a, _ in steps)
        self.seg = nn.Conv3d(features[0], 2, 1)

    def forward(self, x):
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        y = levels.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            y = merge(torch.cat((up(y), levels.pop()), 1))
        return self.seg(y)


class BasicBlock(nn.Module):
    """Block of torchvision's ResNet. One ReLU follows the first norm and the sum."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        BasicBlock(8, 8),
        BasicBlock(8, 12, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class ConvNextBlock(nn.Module):
    """Block of ConvNeXt, with a LayerNorm over the channels of each pixel."""

    def __init__(self, channels=8):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x):
        y = self.mlp(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


def convnext():
    stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(1, 8), nn.GELU())
    return nn.Sequential(stem, ConvNextBlock(), ConvNextBlock())


def transformer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    return nn.Sequential(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.RMSNorm(16)
    )


#: By name: a builder, the shape of an input, and the numbers of swapped and of fused norms.
MODELS = {
    "cyclegan": (cyclegan_generator, (1, 3, 32, 32), 23, 14),
    "pix2pix": (pix2pix_unet, (2, 3, 32, 32), 5, 0),
    "nnunet": (ResidualUnet3d, (1, 1, 8, 8, 8), 9, 5),
    "resnet": (resnet, (2, 3, 32, 32), 6, 1),
    "convnext": (convnext, (2, 3, 32, 32), 1, 1),
    "transformer": (transformer, (2, 5, 16), 0, 0),
}
