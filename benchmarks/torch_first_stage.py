"""The encoder of the frame autoencoders in PyTorch, to be timed against.

`first_stage_encoding.py` starts this file in an environment with PyTorch, which the package itself
does not need. It times encodings of the same raw frames, from bytes on the host to float16 latents
on the host.

References:
  Esser et al.: Taming transformers, CVPR 2021; Rombach et al.: Latent diffusion, CVPR 2022.
"""

import math
from typing import Any

from torch.nn import functional
from torch_turns import Tensor, answer, nn, parse_arguments, torch


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm as published, in fewer groups than 32 where 32 does not divide."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class Attention(nn.Module):
    """Single-head self-attention over the pixels of one image, with a residual connection."""

    def __init__(self, channels: int):
        """Makes the layers."""
        super().__init__()
        self.norm = norm(channels)
        self.parts, self.out = (
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape."""
        query, key, value = self.parts(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        read = functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(read.transpose(1, 2).reshape(x.shape))


class ResBlock(nn.Module):
    """Twice GroupNorm, SiLU and convolution beside a shortcut; then attention where asked for."""

    def __init__(self, inputs: int, outputs: int, attention: bool):
        """Makes the layers."""
        super().__init__()
        self.norms = nn.ModuleList([norm(inputs), norm(outputs)])
        self.convs = nn.ModuleList(
            nn.Conv2d(size, outputs, 3, padding=1) for size in (inputs, outputs)
        )
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` to `[N, O, H, W]`."""
        h = x
        for normalize, conv in zip(self.norms, self.convs, strict=True):
            h = conv(functional.silu(normalize(h)))
        return self.attention(self.shortcut(x) + h)


class Halve(nn.Module):
    """Convolution of stride 2 with zeros on the right and below."""

    def __init__(self, channels: int):
        """Makes the layer."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, C, H/2, W/2]`."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


def make_encoder(spec: dict[str, Any]) -> nn.Sequential:
    """The encoder of a VQ and the 1x1 convolution before its latent, from a description."""
    width, last = spec["channels"], len(spec["channel_mults"]) - 1
    layers: list[nn.Module] = [nn.Conv2d(spec["image_channels"], width, 3, padding=1)]
    for level, mult in enumerate(spec["channel_mults"]):
        for _ in range(spec["num_res_blocks"]):
            outputs = spec["channels"] * mult
            layers.append(ResBlock(width, outputs, level in spec["attention_levels"]))
            width = outputs
        if level < last:
            layers.append(Halve(width))
    layers += [ResBlock(width, width, spec["middle_attention"]), ResBlock(width, width, False)]
    layers += [norm(width), nn.SiLU(), nn.Conv2d(width, spec["z_channels"], 3, padding=1)]
    return nn.Sequential(*layers, nn.Conv2d(spec["z_channels"], spec["embed_dim"], 1))


@torch.inference_mode()
def encode(encoder: nn.Module, frames: Tensor, chunk: int, device: str) -> Tensor:
    """Latents `[N, E, h, w]` of frames `[N, H, W, C]` of bytes, a chunk at a time."""
    latents = []
    for part in frames.split(chunk):
        images = part.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        latents.append(encoder(images).half().cpu())  # waits for the device
    return torch.cat(latents)


def main() -> None:
    """Answers requests until there are no more."""
    arguments = parse_arguments()
    sizes, device = arguments.sizes, arguments.device
    encoder = make_encoder(sizes["spec"]).to(device).eval()
    shape = (sizes["frames"], sizes["size"], sizes["size"], sizes["spec"]["image_channels"])
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)

    def work(_: str) -> Tensor:
        return encode(encoder, frames, sizes["chunk"], device).sum()

    answer(encoder, device, work)


if __name__ == "__main__":
    main()
