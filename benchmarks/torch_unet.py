"""The U-Net of video and the denoiser made of it in PyTorch, to be timed against.

References:
  DiffSDA (arXiv 2510.05717), sections 3, 4 and appendix (video).
"""

import math
from typing import Any

from torch.nn import functional
from torch_first_stage import Attention
from torch_turns import Tensor, nn, torch

BLOCKS_DOWN, TEMPLATE_WIDTH, EMBEDDING_FACTOR, FOURIER_SCALE = 2, 256, 4, 16.0


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in 32 groups, fewer where 32 does not divide."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut; with embeddings three, modulated by these."""

    def __init__(self, inputs: int, outputs: int, embedding: int, attention: bool, dropout: float):
        """Makes the layers; `embedding` 0 for a block without."""
        super().__init__()
        sizes = (inputs, outputs, outputs) if embedding else (inputs, outputs)
        self.norms = nn.ModuleList(norm(size) for size in sizes)
        self.convs = nn.ModuleList(nn.Conv2d(size, outputs, 3, padding=1) for size in sizes)
        self.modulate = nn.ModuleList(
            nn.Linear(embedding, 2 * outputs) for _ in range(2 if embedding else 0)
        )
        self.drop = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, embeddings: tuple[Tensor, ...] = ()) -> Tensor:
        """`[N, I, H, W]` and two or no `[N, E]` to `[N, O, H, W]`."""
        h = self.norms[1](self.convs[0](functional.silu(self.norms[0](x))))
        for layer, embedding in zip(self.modulate, embeddings, strict=True):
            scale, shift = layer(functional.silu(embedding))[:, :, None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        h = self.convs[1](self.drop(functional.silu(h)))
        if embeddings:
            h = self.convs[2](self.drop(functional.silu(self.norms[2](h))))
        return self.attention(self.shortcut(x) + h)


class UNet(nn.Module):
    """Levels of two blocks down, two in the middle and three up, with skip connections."""

    def __init__(self, spec: dict[str, Any], inputs: int, outputs: int, base: int, embedding: int):
        """Makes the layers for a `ModelSpec`; `embedding` 0 for a network without."""
        super().__init__()
        widths, attended = [base * mult for mult in spec["channel_mults"]], spec["attention_levels"]

        def block(size: int, width: int, attention: bool) -> ResBlock:
            return ResBlock(size, width, embedding, attention, spec["dropout"])

        self.head = nn.Conv2d(inputs, base, 3, padding=1)
        skips, width = [base], base
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, size in enumerate(widths):
            for _ in range(BLOCKS_DOWN):
                self.down.append(block(width, size, level in attended))
                width = size
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList(block(width, width, attention) for attention in (True, False))
        for level, size in reversed(list(enumerate(widths))):
            for _ in range(BLOCKS_DOWN + 1):
                self.up.append(block(width + skips.pop(), size, level in attended))
                width = size
            if level:
                halves = [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
                self.up.append(nn.Sequential(*halves))
        self.tail = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor, embeddings: tuple[Tensor, ...] = ()) -> Tensor:
        """`[N, I, H, W]` to `[N, O, H, W]`."""
        h = self.head(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, embeddings) if isinstance(layer, ResBlock) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embeddings)
        for layer in self.up:
            if isinstance(layer, ResBlock):
                h = layer(torch.cat([h, skips.pop()], 1), embeddings)
            else:
                h = layer(h)
        return self.tail(h)


class Denoiser(nn.Module):
    """F of one frame at a time, given its noise level and its factors."""

    def __init__(self, spec: dict[str, Any]):
        """Makes the layers of a `ModelSpec`."""
        super().__init__()
        base, embedding = spec["channels"], EMBEDDING_FACTOR * spec["channels"]
        height, width, channels = spec["shape"]
        self.register_buffer("frequencies", FOURIER_SCALE * torch.randn(base // 2))
        self.noise = nn.Sequential(
            nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        num_factors = spec["dynamic_dim"] + spec["static_dim"]
        self.factors = nn.Linear(num_factors, embedding)
        self.template_shape = (spec["template_channels"], height, width)
        if spec["template_channels"]:
            self.template = nn.Sequential(
                *(nn.Linear(num_factors, TEMPLATE_WIDTH), nn.SiLU()),
                *(nn.Linear(TEMPLATE_WIDTH, TEMPLATE_WIDTH), nn.SiLU()),
                nn.Linear(TEMPLATE_WIDTH, math.prod(self.template_shape)),
            )
        inputs = channels + spec["template_channels"]
        self.unet = UNet(spec, inputs, channels, base, embedding)

    def forward(self, x: Tensor, c_noise: Tensor, factors: Tensor) -> Tensor:
        """`[N, C, H, W]`, `[N]` and `[N, Z]` to `[N, C, H, W]`."""
        angles = 2 * math.pi * c_noise[:, None] * self.frequencies
        noise = functional.silu(self.noise(torch.cat([angles.cos(), angles.sin()], -1)))
        embeddings = (noise, self.factors(factors))
        if self.template_shape[0]:
            x = torch.cat([x, self.template(factors).reshape(-1, *self.template_shape)], 1)
        return self.unet(x, embeddings)
