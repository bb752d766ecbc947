"""Writes the golden files of the HiFi-GAN conversion: small random generators and what they say.

    pip install torch==2.13.0 numpy==2.4.6 && python tests/convert/hifigan_golden/make_golden.py

Made with Python 3.11 on x86_64, CPU. The generator below was written from the paper (Kong et al.
2020, appendix A.1) under the key names of its published checkpoints. Files:

- ``g_legacy``: the layout of before PyTorch 1.6, weight norm as ``weight_g`` and ``weight_v``;
- ``g_zip``: the current layout, weight norm as ``parametrizations.weight.original0`` and ``1``;
- ``io.npz``: input ``log_mel`` [2, V, M] (channels last) and output ``wave`` [2, V hop], float64
  arithmetic, stored as float32.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import leaky_relu

FOLDER = Path(__file__).parent
MELS, CHANNELS, FRAMES = 6, 16, 9
RATES, KERNELS = (4, 2), (8, 4)
BLOCKS, DILATIONS = (3, 5), (1, 3, 5)


class Block(nn.Module):
    def __init__(self, width, kernel):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=d, padding=d * (kernel - 1) // 2)
            for d in DILATIONS
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2) for _ in DILATIONS
        )

    def forward(self, x):
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(leaky_relu(first(leaky_relu(x, 0.1)), 0.1))
        return x


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_pre = nn.Conv1d(MELS, CHANNELS, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        width = CHANNELS
        for rate, kernel in zip(RATES, KERNELS, strict=True):
            self.ups.append(
                nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            )
            width //= 2
            self.resblocks.extend(Block(width, k) for k in BLOCKS)
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3)

    def forward(self, x):
        x = self.conv_pre(x)
        for i, up in enumerate(self.ups):
            x = up(leaky_relu(x, 0.1))
            blocks = self.resblocks[i * len(BLOCKS) : (i + 1) * len(BLOCKS)]
            x = sum(block(x) for block in blocks) / len(BLOCKS)
        return torch.tanh(self.conv_post(leaky_relu(x, 0.01)))


def make(weight_norm):
    """The same random generator under one of torch's two weight norms, gains changed."""
    torch.manual_seed(0)
    generator = Generator()
    for module in list(generator.modules()):
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            weight_norm(module)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("weight_g", "original0")):
                parameter *= 1 + torch.rand_like(parameter)
    return generator


def main():
    old, new = make(nn.utils.weight_norm), make(nn.utils.parametrizations.weight_norm)
    torch.save(
        {"generator": old.state_dict()},
        FOLDER / "g_legacy",
        _use_new_zipfile_serialization=False,
    )
    torch.save({"generator": new.state_dict()}, FOLDER / "g_zip")
    log_mel = torch.from_numpy(np.random.RandomState(0).standard_normal((2, FRAMES, MELS)))
    log_mel = log_mel.float().double()
    with torch.no_grad():
        waves = [g.double()(log_mel.transpose(1, 2))[:, 0] for g in (old, new)]
    torch.testing.assert_close(*waves)
    np.savez(FOLDER / "io.npz", log_mel=log_mel.float().numpy(), wave=waves[0].float().numpy())
    print(waves[0].abs().mean(), waves[0].std(), torch.__version__)


if __name__ == "__main__":
    main()
