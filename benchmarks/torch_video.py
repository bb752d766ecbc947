"""The training step of the video model in PyTorch, to be timed against.

`video_step.py` starts this file in an environment with PyTorch, once for each form. The process
says what it is in one line of JSON, then answers each line `{"steps": ...}` with the seconds and
the loss of each of these training steps. Forms: `eager` (float32, contiguous NCHW, as PyTorch code
is usually run), `eager, channels last`, `eager, bfloat16, channels last` (automatic mixed
precision) and `compiled, bfloat16, channels last` (torch.compile as well).

References:
  DiffSDA (arXiv 2510.05717), sections 3, 4 and appendix (video); Karras et al. 2022 for EDM.
"""

import argparse
import copy
import json
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

from torch_unet import Denoiser, Tensor, UNet, nn, torch  # says so where PyTorch is missing


class Encoder(nn.Module):
    """A U-Net on every frame, and the recurrences that s and d are read from."""

    def __init__(self, spec: dict[str, Any]):
        """Makes the layers of a `ModelSpec`."""
        super().__init__()
        height, width, channels = spec["shape"]
        hidden, self.reference = spec["hidden_dim"], spec["recurrence"] == "reference"
        if spec["encoder_pooling"] or spec["dynamic_activation"] != "linear":
            sys.exit("torch_video: pooled features and a bounded d are not part of this twin.")
        self.unet = UNet(spec, channels, 1, spec["encoder_channels"], 0)
        self.lstm = nn.LSTM(height * width, hidden, batch_first=True, bidirectional=self.reference)
        outputs = hidden * (1 + self.reference)
        recurrence = nn.RNN if self.reference else nn.LSTM
        self.second = recurrence(outputs, hidden, batch_first=True)
        self.static = nn.Linear(outputs, spec["static_dim"])
        self.dynamic = nn.Linear(hidden, spec["dynamic_dim"])

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """`[B V, C, H, W] -> [B V, D + S]`."""
        maps = self.unet(x).reshape(batch, len(x) // batch, -1)
        outputs, (last, _) = self.lstm(maps)
        static = self.static(last.transpose(0, 1).reshape(batch, -1))
        dynamic = self.dynamic(self.second(outputs)[0])
        static = static[:, None].expand(-1, dynamic.shape[1], -1)
        return torch.cat([dynamic, static], -1).flatten(0, 1)


class Twin(nn.Module):
    """Encoder and denoiser, and the loss of a batch."""

    def __init__(self, sizes: dict[str, Any]):
        """Makes both networks."""
        super().__init__()
        spec = sizes["spec"]
        self.encoder, self.denoiser = Encoder(spec), Denoiser(spec)
        self.batch, self.sigma_data = sizes["batch"], spec["sigma_data"]
        self.p_mean, self.p_std = sizes["p_mean"], sizes["p_std"]

    def forward(self, x: Tensor) -> Tensor:
        """EDM's weighted error of one noisy copy of each of `[B V, C, H, W]`."""
        factors, data = self.encoder(x, self.batch), self.sigma_data
        sigma = (self.p_mean + self.p_std * torch.randn(len(x), device=x.device)).exp()
        level = sigma[:, None, None, None]
        total = level**2 + data**2
        x_noisy = x + level * torch.randn_like(x)
        net_out = self.denoiser(x_noisy / total.sqrt(), sigma.log() / 4, factors)
        x_denoised = data**2 / total * x_noisy + level * data / total.sqrt() * net_out
        return (total / (level * data) ** 2 * (x_denoised - x) ** 2).mean()


def steps(model: Twin, x: Tensor, form: str) -> Iterator[float]:
    """An endless loop that yields the loss of a training step."""
    device, layout = x.device.type, torch.contiguous_format
    if "channels last" in form:
        layout = torch.channels_last
    model, x = model.to(memory_format=layout), x.to(memory_format=layout)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5)
    run = torch.compile(model) if form.startswith("compiled") else model
    while True:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in form):
            loss = run(x)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 0.001)
        yield loss.item()  # waits for the device


def main() -> None:
    """Answers requests until there are no more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=json.loads, required=True, help="of model and batch")
    parser.add_argument("--form", required=True)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes, device = arguments.sizes, arguments.device
    model = Twin(sizes).to(device).train()
    height, width, channels = sizes["spec"]["shape"]
    frames = sizes["batch"] * sizes["length"]
    x = sizes["spec"]["sigma_data"] * torch.randn(frames, channels, height, width, device=device)
    count = sum(parameter.numel() for parameter in model.parameters())
    about = f"torch {torch.__version__} with {torch.get_num_threads()} threads"
    print(json.dumps({"parameters": count, "about": about}), flush=True)
    loop = steps(model, x, arguments.form)
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(json.loads(line)["steps"]):
            began = time.perf_counter()
            losses.append(next(loop))
            seconds.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
            torch.cuda.empty_cache()  # the other sides need it
        answer = {"seconds": seconds, "losses": losses, "peak_mib": peak}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
