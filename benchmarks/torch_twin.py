"""The reference form of the series model and its training step in PyTorch, to be timed against.

`air_quality_step.py` starts this file in an environment with PyTorch, which the package itself does
not need. The process says what it is in one line of JSON, then answers each line
`{"form": ..., "steps": ...}` with the seconds and the loss of each of these training steps. Forms:
`original` encodes every noisy copy of a sequence anew, `encode once` encodes a sequence once;
`original, bfloat16` is the first under PyTorch's automatic mixed precision.

References:
  DiffSDA (arXiv 2510.05717), section 3 and appendix (time series); Karras et al. 2022 for EDM.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError:
    sys.exit(
        f"torch_twin: PyTorch is not installed for {sys.executable}; install it there (pip install "
        "torch), or give --torch-python=PATH of a Python that has it."
    )

FORMS = ("original", "encode once", "original, bfloat16")
LAYERS, WIDTH_FACTOR, EMBEDDING, FOURIER = 5, 4, 256, 64
DROPOUT, SIGMA_DATA, P_MEAN, P_STD = 0.1, 0.5, -0.4, 1.0


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """Linear layer, Xavier-uniform with zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    """MLP on every step, bidirectional LSTM for s, tanh RNN on it for d."""

    def __init__(self, sizes: dict[str, int]):
        """Makes the layers."""
        super().__init__()
        features, hidden = sizes["features"], sizes["hidden_dim"]
        width = WIDTH_FACTOR * sizes["encoder_width"]
        inputs = [features] + [width + features] * (LAYERS - 1)
        self.dense = nn.ModuleList(linear(size, width) for size in inputs)
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in inputs)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.rnn = nn.RNN(2 * hidden, hidden, batch_first=True)
        self.static = linear(2 * hidden, sizes["static_dim"])
        self.dynamic = linear(hidden, sizes["dynamic_dim"])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, V, F] -> [B, S], [B, V, D]`."""
        h = x
        for place, (dense, norm) in enumerate(zip(self.dense, self.norm, strict=True)):
            h = norm(dense(h if place == 0 else torch.cat([h, x], -1)))
            if place < LAYERS - 1:
                h = functional.dropout(functional.silu(h), DROPOUT, self.training)
        outputs, (last, _) = self.lstm(h)
        static = self.static(torch.cat([last[0], last[1]], -1))
        return static, self.dynamic(self.rnn(outputs)[0])


class Denoiser(nn.Module):
    """MLP on every step whose layers are scaled and shifted by noise level and factors."""

    def __init__(self, sizes: dict[str, int]):
        """Makes the layers."""
        super().__init__()
        features, width = sizes["features"], WIDTH_FACTOR * sizes["width"]
        inputs = [features] + [width + features] * (LAYERS - 2)
        self.register_buffer("frequencies", 16.0 * torch.randn(FOURIER // 2))
        self.embed = nn.ModuleList([linear(FOURIER, EMBEDDING), linear(EMBEDDING, EMBEDDING)])
        self.condition = linear(sizes["static_dim"] + sizes["dynamic_dim"], EMBEDDING)
        self.dense = nn.ModuleList(linear(size, width) for size in inputs)
        self.noise = nn.ModuleList(linear(EMBEDDING, 2 * width) for _ in inputs)
        self.factors = nn.ModuleList(linear(EMBEDDING, 2 * width) for _ in inputs)
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in inputs)
        self.tail = linear(width + features, features, gain=1e-5)

    def forward(self, x: Tensor, c_noise: Tensor, factors: Tensor) -> Tensor:
        """`[B, V, F]`, `[B, V]` and `[B, V, S + D]` to `[B, V, F]`."""
        angles = 2 * torch.pi * c_noise[..., None] * self.frequencies
        noise = torch.cat([angles.cos(), angles.sin()], -1)
        for dense in self.embed:
            noise = functional.silu(dense(noise))
        noise, condition = functional.silu(noise), functional.silu(self.condition(factors))
        h = x
        for place, dense in enumerate(self.dense):
            h = dense(h if place == 0 else torch.cat([h, x], -1))
            for projection in (self.noise[place](noise), self.factors[place](condition)):
                scale, shift = projection.chunk(2, -1)
                h = h * (1 + scale) + shift
            h = functional.dropout(functional.silu(self.norm[place](h)), DROPOUT, self.training)
        return self.tail(torch.cat([h, x], -1))


class Twin(nn.Module):
    """Encoder and denoiser, and the loss of a batch."""

    def __init__(self, sizes: dict[str, int]):
        """Makes both networks."""
        super().__init__()
        self.encoder, self.denoiser, self.draws = Encoder(sizes), Denoiser(sizes), sizes["draws"]

    def loss(self, x: Tensor, mask: Tensor, form: str) -> Tensor:
        """EDM's weighted error of `draws` noisy copies of each sequence."""
        encode_once = form == "encode once"
        if not encode_once:
            x, mask = (values.repeat_interleave(self.draws, 0) for values in (x, mask))
        static, dynamic = self.encoder(x)
        if encode_once:
            x, mask, static, dynamic = (
                values.repeat_interleave(self.draws, 0) for values in (x, mask, static, dynamic)
            )
        factors = torch.cat([dynamic, static[:, None].expand(-1, x.shape[1], -1)], -1)
        sigma = (P_MEAN + P_STD * torch.randn(x.shape[:2], device=x.device)).exp()
        total = sigma**2 + SIGMA_DATA**2
        x_noisy = x + sigma[..., None] * torch.randn_like(x)
        net_out = self.denoiser(x_noisy / total.sqrt()[..., None], sigma.log() / 4, factors)
        c_skip, c_out = SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt()
        error = (c_skip[..., None] * x_noisy + c_out[..., None] * net_out - x) ** 2
        weight = total / (sigma * SIGMA_DATA) ** 2
        return (weight[..., None] * error * mask).mean()


def training(sizes: dict[str, int], device: str) -> tuple[int, dict[str, Iterator]]:
    """Number of parameters, and for each form an endless loop that yields the loss of a step."""
    torch.manual_seed(0)
    model = Twin(sizes).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5)
    shape = (sizes["batch"], sizes["length"], sizes["features"])
    x, mask = 0.5 * torch.randn(shape, device=device), torch.ones(shape, device=device)

    def steps(form: str) -> Iterator:
        while True:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in form):
                loss = model.loss(x, mask, form)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            yield loss.item()  # waits for the device

    count = sum(parameter.numel() for parameter in model.parameters())
    return count, {form: steps(form) for form in FORMS}


def main() -> None:
    """Answers requests until there are no more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=json.loads, required=True, help="of model and batch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count, loops = training(arguments.sizes, arguments.device)
    about = f"torch {torch.__version__} with {torch.get_num_threads()} threads"
    print(json.dumps({"parameters": count, "about": about}), flush=True)
    for line in sys.stdin:
        request, seconds, losses = json.loads(line), [], []
        for _ in range(request["steps"]):
            began = time.perf_counter()
            losses.append(next(loops[request["form"]]))
            seconds.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(json.dumps({"seconds": seconds, "losses": losses, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    main()
