"""The training step of the video model in PyTorch, to be timed against.

`train_step.py` starts this file in an environment with PyTorch, once for each form. The process
says what it is in one line of JSON, then answers each line `{"steps": ...}` with the seconds and
the loss of each of these training steps. Forms: `eager` (float32, contiguous NCHW, as PyTorch code
is usually run), `eager, channels last`, `eager, bfloat16, channels last` (automatic mixed
precision) and `compiled, bfloat16, channels last` (torch.compile as well).

References:
  DiffSDA (arXiv 2510.05717), sections 3, 4 and appendix (video); Karras et al. 2022 for EDM.
"""

import sys
from typing import Any

from torch_turns import Tensor, answer, nn, parse_arguments, torch, train, weighted_error
from torch_unet import Denoiser, UNet


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
        self.encoder, self.denoiser = Encoder(sizes["spec"]), Denoiser(sizes["spec"])
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        """The loss of `[B V, C, H, W]`."""
        factors = self.encoder(x, self.sizes["batch"])
        return weighted_error(self.denoiser, x, factors, self.sizes)


def main() -> None:
    """Answers requests until there are no more."""
    arguments = parse_arguments()
    sizes, device = arguments.sizes, arguments.device
    model = Twin(sizes).to(device).train()
    height, width, channels = sizes["spec"]["shape"]
    frames = sizes["batch"] * sizes["length"]
    x = sizes["spec"]["sigma_data"] * torch.randn(frames, channels, height, width, device=device)
    loop = train(model, x, arguments.form)
    answer(model, device, lambda _: next(loop))


if __name__ == "__main__":
    main()
