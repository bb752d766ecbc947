"""The semantic encoder: a front for every step, a recurrence, and two linear read-outs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from diffsda_jax.diffusion.edm import expand
from diffsda_jax.factors import Factors
from diffsda_jax.nets.layers import dense, fold_sequence, unfold_sequence
from diffsda_jax.nets.recurrence import Recurrence, valid_steps
from diffsda_jax.nets.unet import UNet

SPREAD = 0.5  # of the features that d is read from when it is centred: that of normalised data
LEAST_SPREAD = 0.1  # of a feature over a sequence that is not taken for silence


class VideoFront(nn.Module):
    """A whole U-Net on every frame that emits a one-channel map, flattened to H W features.

    Attributes:
      unet: with one output channel.
      pooled: adds the U-Net's middle features averaged over pixels, which do not depend on where in
        the frame something is. Off in the paper.

    References:
      DiffSDA (arXiv 2510.05717), section 3 and its released code.
    """

    unet: UNet
    pooled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B V H W C"], train: bool = False) -> Float[Array, "B V P"]:
        """Features of every frame: ``H W``, row by row, and the pooled ones if asked for."""
        maps, pooled = self.unet(fold_sequence(x), train=train)
        features = maps.reshape(maps.shape[0], -1)
        if self.pooled:
            features = jnp.concatenate([features, pooled], axis=-1)
        return unfold_sequence(features, x.shape[0])


def mean_over_steps(
    x: Float[Array, "B V F"], observed: Bool[Array, "B V F"]
) -> Float[Array, "B 1 F"]:
    """Mean of each feature over the observed steps of each sequence; 0 where there are none."""
    count = jnp.maximum(observed.sum(1, keepdims=True), 1)
    return jnp.where(observed, x, 0.0).sum(1, keepdims=True) / count


def standardize_over_steps(
    x: Float[Array, "B V F"], observed: Bool[Array, "B V F"]
) -> Float[Array, "B V F"]:
    """Every feature of every sequence to mean 0 and one spread over its observed steps.

    What the steps share is gone: the channel and much of the voice in speech, the level of a sensor
    in a series. The spread is that of normalised data; a feature that hardly moves stays small,
    and what was not observed is 0.

    References:
      Viikki and Laurila 1998 (cepstral mean and variance normalisation); Chou et al. 2019
      (AdaIN-VC), who keep the speaker out of what the content of speech is read from that way.
    """
    centred = x - mean_over_steps(x, observed)
    variance = mean_over_steps(jnp.square(centred), observed)
    scaled = SPREAD * centred * jax.lax.rsqrt(variance + LEAST_SPREAD**2)
    return jnp.where(observed, scaled, 0.0)


class Encoder(nn.Module):
    """``x_0^{1:V} -> (s_0, d_0^{1:V})``.

    Attributes:
      front: from ``[B, V, ...]`` and ``train`` to features ``[B, V, E]``: ``VideoFront``,
        ``StepMLPEncoder``, or another.
      static_dim: S.
      dynamic_dim: D.
      hidden_dim: width of the recurrence.
      recurrence: ``"lstm"`` or ``"reference"``, see ``Recurrence``.
      bounded_dynamic: d goes through tanh.
      center_dynamic: d is read from what changes only: from a series whose features have mean 0 and
        one spread over the steps of each sequence; its read-out is centred too, before tanh.
      bfloat16: products of the recurrence's inputs in bfloat16, see ``bfloat16_product``.
      sees_mask: of a series, the mask is appended to the values, which are 0 where missing.
      static_per_step: s is read at every step, ``[B, V, S]``.
      cudnn: cuDNN runs LSTMs where it can, see ``recurrence.LSTM``.

    References:
      DiffSDA (arXiv 2510.05717), section 3.
    """

    front: nn.Module
    static_dim: int
    dynamic_dim: int
    hidden_dim: int
    recurrence: str = "lstm"
    bounded_dynamic: bool = False
    center_dynamic: bool = False
    bfloat16: bool = False
    sees_mask: bool = False
    static_per_step: bool = False
    cudnn: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B V *event"],
        length: Int[Array, "B"] | None = None,
        mask: Bool[Array, "B V *maskdims"] | None = None,
        train: bool = False,
    ) -> Factors:
        """Encodes clean sequences; steps from ``length`` on are padding and do not count."""
        if mask is not None:  # [B, V] or the shape of x
            mask = jnp.broadcast_to(expand(mask, x.ndim), x.shape)
        recurrence = Recurrence(
            self.hidden_dim,
            self.recurrence,
            self.bfloat16,
            self.static_per_step,
            self.cudnn,
            name="recurrence",
        )

        def read(x: Array) -> tuple[Array, Array]:
            return recurrence(self.front(self._seen(x, mask), train), length)

        for_static, for_dynamic = read(x)
        if self.center_dynamic:
            real = valid_steps(length, *x.shape[:2]).T[:, :, None]
            observed = jnp.broadcast_to(real if mask is None else real & mask, x.shape)
            _, for_dynamic = read(standardize_over_steps(x, observed))
        dynamic = dense(self.dynamic_dim, "dynamic")(for_dynamic)
        if self.center_dynamic:
            dynamic -= mean_over_steps(dynamic, jnp.broadcast_to(real, dynamic.shape))
        return Factors(
            static=dense(self.static_dim, "static")(for_static),
            dynamic=jnp.tanh(dynamic) if self.bounded_dynamic else dynamic,
        )

    def _seen(self, x: Array, mask: Array | None) -> Array:
        """What the networks see: the values, and the mask beside them where it is to be seen."""
        if not self.sees_mask:
            return x
        observed = jnp.ones(x.shape, bool) if mask is None else mask
        return jnp.concatenate([jnp.where(observed, x, 0.0), observed.astype(x.dtype)], axis=-1)
