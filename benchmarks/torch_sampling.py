"""Sampling by Heun's method in PyTorch, to be timed against.

`sampling.py` starts this file in an environment with PyTorch. Forms: `eager` (contiguous, as
PyTorch code is usually run) and, of video, `eager, channels last`.

References:
  Karras et al. 2022, algorithm 1 without noise.
"""

import math

import torch_series
import torch_unet
from torch_turns import Tensor, answer, nn, parse_arguments, torch


@torch.inference_mode()
def sample(net: nn.Module, start: Tensor, factors: Tensor, grid: list[float], sd: float) -> Tensor:
    """Heun's method from unit noise `[N, ...]` on falling noise levels; 2 N - 1 evaluations."""

    def slope(x: Tensor, sigma: float) -> Tensor:
        total = sigma**2 + sd**2
        c_noise = torch.full((len(x),), math.log(sigma) / 4, device=x.device)
        net_out = net(x / math.sqrt(total), c_noise, factors)
        denoised = sd**2 / total * x + sigma * sd / math.sqrt(total) * net_out
        return (x - denoised) / sigma

    x = start * grid[0]
    for sigma, following in zip(grid[:-1], grid[1:], strict=True):
        first = slope(x, sigma)
        x_next = x + (following - sigma) * first
        if following > 0:
            x_next = x + (following - sigma) * (first + slope(x_next, following)) / 2
        x = x_next
    return x


def main() -> None:
    """Answers requests until there are no more."""
    arguments = parse_arguments()
    sizes, device = arguments.sizes, arguments.device
    spec, count = sizes["spec"], sizes["clips"] * sizes["length"]
    video = spec["kind"] == "video"
    net = (torch_unet if video else torch_series).Denoiser(spec).to(device).eval()
    start = torch.randn(count, *spec["shape"][-1:], *spec["shape"][:-1], device=device)
    factors = torch.randn(count, spec["dynamic_dim"] + spec["static_dim"], device=device)

    def work(form: str) -> Tensor:
        last = "channels last" in form
        layout = torch.channels_last if last else torch.contiguous_format
        laid_out = net.to(memory_format=layout), start.to(memory_format=layout)
        x = sample(*laid_out, factors, sizes["grid"], spec["sigma_data"])
        return x.sum()

    answer(net, device, work)


if __name__ == "__main__":
    main()
