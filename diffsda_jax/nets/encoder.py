"""The semantic encoder: a front for every step, a recurrence, and two linear read-outs."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from diffsda_jax.factors import Factors
from diffsda_jax.nets.layers import dense, fold_sequence, unfold_sequence
from diffsda_jax.nets.recurrence import Recurrence, center_over_steps
from diffsda_jax.nets.step_mlp import StepMLPEncoder
from diffsda_jax.nets.unet import UNet


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


class Encoder(nn.Module):
    """``x_0^{1:V} -> (s_0, d_0^{1:V})``.

    Attributes:
      front: ``VideoFront`` or ``StepMLPEncoder``.
      static_dim: S.
      dynamic_dim: D.
      hidden_dim: width of the recurrence.
      recurrence: ``"lstm"`` or ``"reference"``, see ``Recurrence``.
      bounded_dynamic: d goes through tanh.
      center_dynamic: the read-out of d has its mean over the steps taken out, before tanh.
      half: products of the recurrence's inputs in bfloat16, see ``half_product``.
      sees_mask: of a series, the mask is appended to the values, which are 0 where missing.

    References:
      DiffSDA (arXiv 2510.05717), section 3.
    """

    front: VideoFront | StepMLPEncoder
    static_dim: int
    dynamic_dim: int
    hidden_dim: int
    recurrence: str = "lstm"
    bounded_dynamic: bool = False
    center_dynamic: bool = False
    half: bool = False
    sees_mask: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B V *event"],
        length: Int[Array, "B"] | None = None,
        mask: Bool[Array, "B V *maskdims"] | None = None,
        train: bool = False,
    ) -> Factors:
        """Encodes clean sequences; steps from ``length`` on are padding and do not count."""
        if self.sees_mask:
            observed = jnp.ones(x.shape, bool) if mask is None else mask
            x = jnp.concatenate([jnp.where(observed, x, 0.0), observed.astype(x.dtype)], axis=-1)
        features = self.front(x, train)
        recurrence = Recurrence(self.hidden_dim, self.recurrence, self.half, name="recurrence")
        for_static, for_dynamic = recurrence(features, length)
        dynamic = dense(self.dynamic_dim, "dynamic")(for_dynamic)
        if self.center_dynamic:
            dynamic = center_over_steps(dynamic, length)
        return Factors(
            static=dense(self.static_dim, "static")(for_static),
            dynamic=jnp.tanh(dynamic) if self.bounded_dynamic else dynamic,
        )
