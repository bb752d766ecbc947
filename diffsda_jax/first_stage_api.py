"""The public API of the frame autoencoders: a converted or trained one as an object."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Float16, Num, UInt8

from diffsda_jax import sharding
from diffsda_jax.first_stage.nets import make_model, variable_shapes
from diffsda_jax.first_stage.spec import META_KEY, FirstStageSpec
from diffsda_jax.nets.applied import applied
from diffsda_jax.train.integrity import hash_weights

ArrayLike = Array | np.ndarray


class FirstStage:
    """A frame autoencoder with its weights, for inference.

    Frames go through a chunk at a time and results come back to the host, so that the device holds
    one chunk however long the video is. Programs are compiled once for each size of frame and
    chunk.

    Attributes:
      spec: the autoencoder's description.
      variables: collection ``params``.
      meta: what the checkpoint says of itself.

    References:
      Esser et al. 2021 (VQ); Rombach et al. 2022 (KL, and without quantisation when encoding);
      DiffSDA (arXiv 2510.05717), section 4 (diffusion on latents).
    """

    def __init__(
        self,
        spec: FirstStageSpec,
        variables: Mapping[str, Any],
        meta: Mapping[str, Any] | None = None,
    ):
        """Takes weights that fit ``spec``; see ``from_checkpoint`` for the usual way."""
        self.spec, self.meta = spec, dict(meta or {})
        self.variables = jax.device_put(dict(variables))

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike, weights: str = "ema") -> "FirstStage":
        """Reads a checkpoint, such as ``python -m diffsda_jax.convert`` writes.

        Args:
          path: a workdir, its ``checkpoints`` folder, or one step's folder.
          weights: ``"ema"``, the moving average, or ``"raw"``; the same in converted ones.

        Returns:
          The autoencoder on this process's first device.

        Raises:
          FileNotFoundError: the directory does not exist.
          ValueError: it is no checkpoint, is damaged, or holds something else.
        """
        from diffsda_jax.train import checkpoint, integrity  # Orbax takes seconds to import

        variables, meta = checkpoint.load_for_inference(path, weights)
        if META_KEY not in meta:
            way_out = "convert or train an autoencoder with this package"
            if "model" in meta:
                way_out = "this one has a sequence model, which DiffSDA.from_checkpoint loads"
            raise ValueError(
                f"checkpoint {path} does not hold a first stage (no {META_KEY!r} in its meta); "
                f"{way_out}."
            )
        spec = FirstStageSpec.from_dict(meta[META_KEY])
        integrity.check_compatible(variable_shapes(spec), variables)
        return cls(spec, variables, meta)

    def fingerprint(self) -> str:
        """16 hex digits that change with the description or with any weight."""
        return hash_weights(repr(self.spec), self.variables)

    def encode(
        self, images: Num[ArrayLike, "*frames H W C"], chunk_frames: int = 8
    ) -> Float[np.ndarray, "*frames h w E"]:
        """Frames to latents: of a VQ those before quantisation, of a KL the means.

        Args:
          images: values in [-1, 1]; height and width divisible by ``spec.factor``.
          chunk_frames: frames that the device holds at once; memory is in proportion to it.

        Returns:
          ``[..., H / f, W / f, embed_dim]``, float32, on the host, not scaled.

        Raises:
          ValueError: frames that do not fit, or ``chunk_frames`` below 1.
        """
        self._check("images", images, self.spec.image_channels)
        height, width = images.shape[-3:-1]
        if height % self.spec.factor or width % self.spec.factor:
            raise ValueError(
                f"images are {height}x{width}; this first stage halves them "
                f"{len(self.spec.channel_mults) - 1} times, so height and width must be divisible "
                f"by {self.spec.factor}; resize or crop them."
            )
        return _in_chunks(
            functools.partial(_encode, self.spec, self.variables), images, chunk_frames
        )

    def decode(
        self, latents: Num[ArrayLike, "*frames h w E"], chunk_frames: int = 8
    ) -> Float[np.ndarray, "*frames H W C"]:
        """Latents to frames; a VQ replaces them by the nearest codes first.

        Args:
          latents: as ``encode`` gives them.
          chunk_frames: frames that the device holds at once; memory is in proportion to it.

        Returns:
          ``[..., f h, f w, image_channels]``, float32, on the host, about in [-1, 1] (not clipped).

        Raises:
          ValueError: latents that do not fit, or ``chunk_frames`` below 1.
        """
        self._check("latents", latents, self.spec.embed_dim)
        return _in_chunks(
            functools.partial(_decode, self.spec, self.variables), latents, chunk_frames
        )

    def _check(self, name: str, array: ArrayLike, channels: int) -> None:
        """Refuses arrays of another type or with other channels, empty or not finite ones."""
        if not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            raise ValueError(
                f"{name} have type {array.dtype}; give floating-point values, pixels in [-1, 1] "
                "(those of 0 to 255 become x / 127.5 - 1)."
            )
        if array.ndim < 3 or array.shape[-1] != channels or 0 in array.shape:
            raise ValueError(
                f"{name} have shape {tuple(array.shape)}; this first stage takes [..., height, "
                f"width, {channels}], channels last, at least one frame."
            )
        if isinstance(array, np.ndarray) and not np.isfinite(array).all():
            raise ValueError(
                f"{name} hold {int((~np.isfinite(array)).sum())} values that are not finite; "
                "replace them or leave these frames out."
            )


class FrameEncoder:
    """Encodes raw frames on all devices of a mesh.

    Frames go through a chunk at a time, always of the same size, so a frame's latents do not depend
    on the frames around it.

    Attributes:
      batch_frames: frames of a full batch, over all devices.
      chunk: frames that the devices hold at once, over all of them.
      variables: of the first stage, on every device.
    """

    def __init__(self, first_stage: FirstStage, mesh: Mesh, batch_frames: int, chunk_frames: int):
        """Compiles nothing yet.

        Args:
          first_stage: with its weights.
          mesh: of ``sharding.make_mesh``.
          batch_frames: frames of a batch at least; rounded up to whole chunks.
          chunk_frames: frames that a device holds at once at most; memory is in proportion to it.
        """
        devices = mesh.devices.size
        self.chunk = min(chunk_frames, -(-batch_frames // devices)) * devices
        self.batch_frames = -(-batch_frames // self.chunk) * self.chunk
        self.variables = jax.device_put(first_stage.variables, sharding.replicated(mesh))
        self._spec, self._mesh = first_stage.spec, mesh

    def start(self, frames: UInt8[np.ndarray, "N H W C"]) -> list[Array]:
        """Hands frames (0 to 255) to the devices and returns at once.

        Args:
          frames: any number N.

        Returns:
          What ``fetch`` takes: latents ``[chunk, h, w, E]`` that may not be ready yet.
        """
        chunks = []
        for first in range(0, len(frames), self.chunk):
            # The last chunk repeats the last frame until it is full: one size, one program.
            which = np.minimum(np.arange(first, first + self.chunk), len(frames) - 1)
            chunk = jax.device_put(frames[which], sharding.batch_sharding(self._mesh))
            chunks.append(encode_bytes(self._spec, self._mesh, self.variables, chunk))
        return chunks

    @staticmethod
    def fetch(chunks: list[Array], num_frames: int) -> Float16[np.ndarray, "{num_frames} h w E"]:
        """The latents of the frames that ``start`` was given, when they are ready.

        Args:
          chunks: what ``start`` returned, ``[chunk, h, w, E]`` each.
          num_frames: how many it was given.

        Returns:
          One array of all.
        """
        return np.concatenate([np.asarray(chunk) for chunk in chunks])[:num_frames]


def _in_chunks(
    run: Callable[[np.ndarray], Array], frames: ArrayLike, chunk_frames: int
) -> np.ndarray:
    """What ``run`` makes of all frames, given to it ``chunk_frames`` at a time."""
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames is {chunk_frames}; it must be at least 1.")
    leading, flat = frames.shape[:-3], np.asarray(frames).reshape(-1, *frames.shape[-3:])
    count, results = len(flat), list[np.ndarray | Array]()
    size = min(chunk_frames, count)
    for start in range(0, count, size):
        # The last chunk repeats the last frame until it is full: no second program for the rest.
        which = np.minimum(np.arange(start, start + size), count - 1)
        results.append(run(flat[which].astype(np.float32)))
        if start > 0:  # fetched while the device works on the chunk after it
            results[-2] = np.asarray(results[-2])
    whole = np.concatenate(results)[:count]
    return whole.reshape(*leading, *whole.shape[1:])


@functools.partial(jax.jit, static_argnums=0)
def _encode(spec: FirstStageSpec, variables: Any, images: Array) -> Array:
    return applied(make_model(spec), variables, images, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(spec: FirstStageSpec, variables: Any, latents: Array) -> Array:
    return applied(make_model(spec), variables, latents, method="decode")


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode_bytes(
    spec: FirstStageSpec, mesh: Mesh, variables: Any, frames: UInt8[Array, "N H W C"]
) -> Float16[Array, "N h w E"]:
    """The program of ``FrameEncoder`` for one chunk; bytes are sent, a quarter of floats."""

    def encode(variables: Any, frames: Array) -> Array:
        images = frames.astype(jnp.float32) / 127.5 - 1.0
        latents = applied(make_model(spec), variables, images, method="encode")
        return latents.astype(jnp.float16)

    whole, split = PartitionSpec(), PartitionSpec(sharding.BATCH_AXES)
    # Each device has a program of its own: split by the compiler, the loops over images of
    # attention would have every device compute all of them.
    mapped = jax.shard_map(encode, mesh=mesh, in_specs=(whole, split), out_specs=split)
    return mapped(variables, frames)
