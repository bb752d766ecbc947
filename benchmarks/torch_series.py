"""The reference form of the series model and its training step in PyTorch, to be timed against.

`train_step.py` starts this file in an environment with PyTorch, once for each form: `original`
encodes every noisy copy of a sequence anew, `encode once` encodes a sequence once; with `bfloat16`
under PyTorch's automatic mixed precision, and starting with `compiled` by torch.compile.

References:
  DiffSDA (arXiv 2510.05717), section 3 and appendix (time series); Karras et al. 2022 for EDM.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch_turns import answer, parse_arguments, torch, train, weighted_error

LAYERS, WIDTH_FACTOR, EMBEDDING, FOURIER = 5, 4, 256, 64
DROPOUT = 0.1


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """Linear layer, Xavier-uniform with zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    """MLP on every step, bidirectional LSTM for s, tanh RNN on it for d."""

    def __init__(self, spec: dict[str, Any]):
        """Makes the layers."""
        super().__init__()
        features, hidden = spec["shape"][0], spec["hidden_dim"]
        width = WIDTH_FACTOR * spec["encoder_width"]
        inputs = [features] + [width + features] * (LAYERS - 1)
        self.dense = nn.ModuleList(linear(size, width) for size in inputs)
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in inputs)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.rnn = nn.RNN(2 * hidden, hidden, batch_first=True)
        self.static = linear(2 * hidden, spec["static_dim"])
        self.dynamic = linear(hidden, spec["dynamic_dim"])

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

    def __init__(self, spec: dict[str, Any]):
        """Makes the layers."""
        super().__init__()
        features, width = spec["shape"][0], WIDTH_FACTOR * spec["width"]
        inputs = [features] + [width + features] * (LAYERS - 2)
        self.register_buffer("frequencies", 16.0 * torch.randn(FOURIER // 2))
        self.embed = nn.ModuleList([linear(FOURIER, EMBEDDING), linear(EMBEDDING, EMBEDDING)])
        self.condition = linear(spec["static_dim"] + spec["dynamic_dim"], EMBEDDING)
        self.dense = nn.ModuleList(linear(size, width) for size in inputs)
        self.noise = nn.ModuleList(linear(EMBEDDING, 2 * width) for _ in inputs)
        self.factors = nn.ModuleList(linear(EMBEDDING, 2 * width) for _ in inputs)
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in inputs)
        self.tail = linear(width + features, features, gain=1e-5)

    def forward(self, x: Tensor, c_noise: Tensor, factors: Tensor) -> Tensor:
        """`[..., F]`, `[...]` and `[..., D + S]` to `[..., F]`."""
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

    def __init__(self, sizes: dict[str, Any], encode_once: bool):
        """Makes both networks."""
        super().__init__()
        self.encoder, self.denoiser = Encoder(sizes["spec"]), Denoiser(sizes["spec"])
        self.sizes, self.encode_once = sizes, encode_once

    def forward(self, x: Tensor) -> Tensor:
        """The loss of `draws` noisy copies of each sequence `[B, V, F]`."""
        draws = self.sizes["draws"]
        if not self.encode_once:
            x = x.repeat_interleave(draws, 0)
        static, dynamic = self.encoder(x)
        if self.encode_once:
            x, static, dynamic = (
                values.repeat_interleave(draws, 0) for values in (x, static, dynamic)
            )
        factors = torch.cat([dynamic, static[:, None].expand(-1, x.shape[1], -1)], -1)
        x, factors = x.flatten(0, 1), factors.flatten(0, 1)
        return weighted_error(self.denoiser, x, factors, self.sizes)


def main() -> None:
    """Answers requests until there are no more."""
    arguments = parse_arguments()
    sizes, device = arguments.sizes, arguments.device
    model = Twin(sizes, "encode once" in arguments.form).to(device).train()
    shape = (sizes["batch"], sizes["length"], *sizes["spec"]["shape"])
    x = sizes["spec"]["sigma_data"] * torch.randn(shape, device=device)
    loop = train(model, x, arguments.form)
    answer(model, device, lambda _: next(loop))


if __name__ == "__main__":
    main()
