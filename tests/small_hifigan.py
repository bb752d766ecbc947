"""A small HiFi-GAN generator as a file."""

import numpy as np

from diffsda_jax.convert.hifigan import layers
from diffsda_jax.nets.hifigan import HifiganSpec


def vocoder_file(path, num_mels):
    """A published generator's layout, small and random, whose hop is the mel's 256 samples."""
    spec = HifiganSpec(
        num_mels=num_mels,
        channels=8,
        upsample_rates=(16, 16),
        upsample_kernels=(32, 32),
        resblock_kernels=(3,),
        resblock_dilations=((1, 3, 5),),
    )
    rng = np.random.default_rng(0)
    width = {"conv_pre": (8, num_mels, 7), "ups.0": (8, 4, 32), "ups.1": (4, 2, 32)}
    width |= {"conv_post": (1, 2, 7)}
    tensors = {}
    for layer in layers(spec):
        channels = 4 if layer.source.startswith("resblocks.0") else 2
        shape = width.get(layer.source, (channels, channels, 3))
        bias = shape[1] if layer.source.startswith("ups") else shape[0]
        tensors[f"{layer.source}.weight"] = rng.normal(size=shape).astype(np.float32) / 4
        tensors[f"{layer.source}.bias"] = np.zeros(bias, np.float32)
    np.savez(path, **tensors)
    return path
