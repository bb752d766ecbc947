"""The HiFi-GAN generator: from log-mel frames to a waveform. Channels last.

References:
  Kong, Kim, Bae: HiFi-GAN, NeurIPS 2020, section 2.2 and appendix A.1.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

SLOPE = 0.1  # of every leaky ReLU but the last
LAST_SLOPE = 0.01
END_KERNEL = 7  # of the first and the last convolution
_INIT = nn.initializers.normal(0.01)


@dataclasses.dataclass(frozen=True)
class HifiganSpec:
    """What the generator is made of; the defaults are the published v1.

    Attributes:
      num_mels: features of a frame.
      channels: after the first convolution; every upsampling halves them.
      upsample_rates: output steps of each upsampling for one of its input; their product is the
        hop of the mel.
      upsample_kernels: one for each rate, larger than it by an even number.
      resblock_kernels: odd; one residual block for each after every upsampling.
      resblock_dilations: of the layers of each block.

    Raises:
      ValueError: values that contradict each other.
    """

    num_mels: int = 80
    channels: int = 512
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 16, 4, 4)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3

    def __post_init__(self):
        """Checks the values."""
        rates, kernels = self.upsample_rates, self.upsample_kernels
        fit = len(rates) == len(kernels) and all(
            k >= u > 0 and (k - u) % 2 == 0 for k, u in zip(kernels, rates, strict=True)
        )
        if not fit:
            raise ValueError(
                f"HifiganSpec has upsample_rates {rates} and upsample_kernels {kernels}; give one "
                "kernel for each rate, as large or larger by an even number."
            )
        if self.channels % 2 ** len(rates):
            raise ValueError(
                f"HifiganSpec.channels is {self.channels}, which cannot be halved {len(rates)} "
                f"times; give a multiple of {2 ** len(rates)}."
            )
        blocks, dilations = self.resblock_kernels, self.resblock_dilations
        if not blocks or len(blocks) != len(dilations) or any(k % 2 == 0 for k in blocks):
            raise ValueError(
                f"HifiganSpec has resblock_kernels {blocks} and resblock_dilations {dilations}; "
                "give odd kernels and a tuple of dilations for each."
            )

    @property
    def hop(self) -> int:
        """Samples for each frame."""
        return math.prod(self.upsample_rates)


def _conv(features: int, kernel: int, name: str, dilation: int = 1) -> nn.Conv:
    """Convolution along time that keeps the length."""
    pad = dilation * (kernel - 1) // 2
    return nn.Conv(
        features, (kernel,), padding=(pad,), kernel_dilation=dilation, kernel_init=_INIT, name=name
    )


class Upsample(nn.Module):
    """Transposed convolution that makes every step into ``rate`` steps.

    Equals ``ConvTranspose1d(kernel, stride=rate, padding=(kernel - rate) // 2)``. It is computed as
    an ordinary convolution with ``rate`` times the channels, since inputs spread out with zeros
    cost as much as full ones.

    Attributes:
      features: channels of the output.
      kernel: taps.
      rate: output steps for one of the input.
    """

    features: int
    kernel: int
    rate: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B M O"]:
        """``M = N rate``."""
        taps = self.param("kernel", _INIT, (self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Tap i rate + r adds input q to output (q + i) rate + r: phase r sees one tap of each i.
        reach = -(-self.kernel // self.rate)
        taps = jnp.pad(taps, ((0, reach * self.rate - self.kernel), (0, 0), (0, 0)))
        taps = taps.reshape(reach, self.rate, x.shape[-1], self.features)[::-1]
        taps = taps.transpose(0, 2, 1, 3).reshape(reach, x.shape[-1], -1)
        out = jax.lax.conv_general_dilated(
            x, taps, (1,), [(reach - 1, reach - 1)], dimension_numbers=("NWC", "WIO", "NWC")
        )
        out = out.reshape(x.shape[0], -1, self.features)
        cut = (self.kernel - self.rate) // 2
        return out[:, cut : cut + x.shape[1] * self.rate] + bias[None, None, :]


class ResBlock(nn.Module):
    """Pairs of convolutions, the first dilated, each pair with a residual connection.

    Attributes:
      kernel: taps, odd.
      dilations: of the first convolution of each pair.
    """

    kernel: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        """Same shape."""
        for i, dilation in enumerate(self.dilations):
            h = nn.leaky_relu(x, SLOPE)
            h = _conv(x.shape[-1], self.kernel, f"dilated_{i}", dilation)(h)
            h = _conv(x.shape[-1], self.kernel, f"plain_{i}")(nn.leaky_relu(h, SLOPE))
            x = x + h
        return x


class Hifigan(nn.Module):
    """The generator.

    Attributes:
      spec: its sizes.
    """

    spec: HifiganSpec = HifiganSpec()

    @nn.compact
    def __call__(self, log_mel: Float[Array, "B V M"]) -> Float[Array, "B N"]:
        """Waveforms in +-1 with ``N = V hop`` samples.

        Args:
          log_mel: natural-log mels as ``audio.spectrogram.log_mel`` makes them, not normalised.

        Raises:
          ValueError: another number of mels.
        """
        spec = self.spec
        if log_mel.shape[-1] != spec.num_mels:
            raise ValueError(
                f"The spectrogram has {log_mel.shape[-1]} mels, but this HiFi-GAN takes "
                f"{spec.num_mels}; use the vocoder of this spectrogram, or Griffin-Lim."
            )
        h = _conv(spec.channels, END_KERNEL, "conv_pre")(log_mel)
        width = spec.channels
        for i, sizes in enumerate(zip(spec.upsample_kernels, spec.upsample_rates, strict=True)):
            width //= 2
            h = Upsample(width, *sizes, name=f"up_{i}")(nn.leaky_relu(h, SLOPE))
            blocks = zip(spec.resblock_kernels, spec.resblock_dilations, strict=True)
            outputs = [ResBlock(*block, name=f"block_{i}_{j}")(h) for j, block in enumerate(blocks)]
            h = sum(outputs) / len(outputs)
        h = _conv(1, END_KERNEL, "conv_post")(nn.leaky_relu(h, LAST_SLOPE))
        return jnp.tanh(h[:, :, 0])
