"""The network of the joint prior: a transformer over one static and V dynamic tokens."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from diffsda_jax.diffusion import edm
from diffsda_jax.nets.layers import (
    NORM_EPSILON,
    Dropout,
    NoiseEmbedding,
    dense,
    scale_shift,
)
from diffsda_jax.prior_spec import PriorSpec

NOISE_EMBEDDING = 128  # width of the embedding of one noise level
FOURIER_FEATURES = 32
SCALES = 2.0 ** np.arange(8)  # decay lengths of what is known about places, in steps
MLP_FACTOR = 4  # hidden width of a block for each unit of width


class JointPrior(nn.Module):
    """The transformer in EDM form, with a noise level for s and one for d.

    Attributes:
      spec: the description.
    """

    spec: PriorSpec

    @nn.compact
    def __call__(
        self,
        static: Float[Array, "B S"],
        dynamic: Float[Array, "B V D"],
        sigma_static: Float[Array, "B"],
        sigma_dynamic: Float[Array, "B"],
        length: Int[Array, "B"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B S"], Float[Array, "B V D"]]:
        """Denoised s and d^{1:V}; what is given without noise has the level ``sigma_min``."""
        spec = self.spec
        of_static = edm.preconditioning(sigma_static, spec.sigma_data)
        of_dynamic = edm.preconditioning(sigma_dynamic, spec.sigma_data)
        net = FactorTransformer(
            spec.static_dim,
            spec.dynamic_dim,
            spec.token_width,
            spec.num_layers,
            spec.num_heads,
            spec.dropout,
            name="transformer",
        )
        outputs = net(
            edm.expand(of_static.c_in, 2) * static,
            edm.expand(of_dynamic.c_in, 3) * dynamic,
            of_static.c_noise,
            of_dynamic.c_noise,
            length,
            train,
        )
        parts = zip((of_static, of_dynamic), (static, dynamic), outputs, strict=True)
        static, dynamic = (
            edm.expand(c.c_skip, x.ndim) * x + edm.expand(c.c_out, x.ndim) * out
            for c, x, out in parts
        )
        return static, dynamic


class FactorTransformer(nn.Module):
    """F of the joint prior: one static token and V dynamic tokens that attend to each other.

    Every token knows its own noise level and that of the other kind (adaptive layer norm), so that
    one network serves the joint distribution and both conditional ones. Places enter as distances,
    to both ends and to each other, by exponentials that fade out: nothing depends on V, and in
    sequences longer than those seen the middle looks like the middle.

    Attributes:
      static_dim: S.
      dynamic_dim: D.
      width: of a token, a multiple of ``num_heads``.
      num_layers: number of blocks.
      num_heads: attention heads.
      dropout: rate after attention and within the MLPs.

    References:
      Peebles and Xie: Scalable Diffusion Models with Transformers, ICCV 2023 (adaptive layer norm
      with gates that start at zero); Bao et al.: One Transformer Fits All Distributions in
      Multi-Modal Diffusion (UniDiffuser), ICML 2023 (a noise level for each part); Shaw et al. 2018
      and Press et al. 2022 (relative positions as a bias of attention).
    """

    static_dim: int
    dynamic_dim: int
    width: int
    num_layers: int
    num_heads: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        static: Float[Array, "B S"],
        dynamic: Float[Array, "B V D"],
        noise_static: Float[Array, "B"],
        noise_dynamic: Float[Array, "B"],
        length: Int[Array, "B"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B S"], Float[Array, "B V D"]]:
        """The raw output for both kinds of factor.

        Args:
          static: scaled noisy static factors.
          dynamic: scaled noisy dynamic factors.
          noise_static: ``c_noise`` of the static factors.
          noise_dynamic: ``c_noise`` of the dynamic factors, one for all steps of a sequence.
          length: number of real steps, the rest is padding; None = all are real.
          train: dropout on (needs the random stream ``dropout``).
        """
        batch, steps = dynamic.shape[:2]
        length = jnp.full((batch,), steps) if length is None else length
        condition = self._condition(noise_static, noise_dynamic)
        ends = dense(self.width, "ends")(_distances_to_ends(length, steps))
        tokens = jnp.concatenate(
            [
                dense(self.width, "static_in")(static)[:, None],
                dense(self.width, "dynamic_in")(dynamic) + ends,
            ],
            axis=1,
        )
        seen = jnp.arange(steps + 1)[None, :] <= length[:, None]
        # Over stacked parameters, so that XLA compiles one block, whatever their number.
        blocks = nn.scan(
            _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.num_layers,
        )(self.width, self.num_heads, self.dropout, train, name="blocks")
        tokens, _ = blocks(tokens, condition, seen)
        tokens = nn.LayerNorm(NORM_EPSILON, use_bias=False, use_scale=False)(tokens)
        scale = dense(2 * self.width, "out_condition", gain=1e-5)(condition)
        tokens = scale_shift(tokens, _for_tokens(scale, steps + 1))
        return (
            dense(self.static_dim, "static_out", gain=1e-5)(tokens[:, 0]),
            dense(self.dynamic_dim, "dynamic_out", gain=1e-5)(tokens[:, 1:]),
        )

    def _condition(
        self, noise_static: Float[Array, "B"], noise_dynamic: Float[Array, "B"]
    ) -> Float[Array, "B 2 W"]:
        """What tokens of either kind know of the two noise levels, their own first."""
        embedding = NoiseEmbedding(NOISE_EMBEDDING, FOURIER_FEATURES, name="noise")
        own = embedding(jnp.stack([noise_static, noise_dynamic], axis=1))
        both = jnp.concatenate([own, own[:, ::-1]], axis=-1)
        return jnp.stack(
            [
                nn.silu(dense(self.width, f"{kind}_condition")(both[:, i]))
                for i, kind in enumerate(("static", "dynamic"))
            ],
            axis=1,
        )


class _Block(nn.Module):
    """Attention and MLP, each normalised, scaled and gated by the noise levels.

    Attributes:
      width: of a token.
      num_heads: attention heads.
      dropout: rate.
      train: dropout on.
    """

    width: int
    num_heads: int
    dropout: float
    train: bool

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B L W"],
        condition: Float[Array, "B 2 W"],
        seen: Bool[Array, "B L"],
    ) -> tuple[Float[Array, "B L W"], None]:
        """Tokens after one block; ``seen`` is False for padding, which no token reads."""
        known = dense(6 * self.width, "condition", gain=1e-5)(condition)
        scale_1, gate_1, scale_2, gate_2 = jnp.split(
            _for_tokens(known, tokens.shape[1]), np.cumsum((2, 1, 2)) * self.width, axis=-1
        )
        norm = nn.LayerNorm(NORM_EPSILON, use_bias=False, use_scale=False)
        read = self._attend(scale_shift(norm(tokens), scale_1), seen)
        tokens = tokens + gate_1 * Dropout(self.dropout)(read, self.train)
        h = dense(MLP_FACTOR * self.width, "mlp_0")(scale_shift(norm(tokens), scale_2))
        h = Dropout(self.dropout)(nn.silu(h), self.train)
        return tokens + gate_2 * dense(self.width, "mlp_1")(h), None

    def _attend(self, h: Float[Array, "B L W"], seen: Bool[Array, "B L"]) -> Float[Array, "B L W"]:
        """Self-attention whose scores also depend on how far apart two steps are."""
        batch, count, _ = h.shape
        shape = (batch, count, self.num_heads, self.width // self.num_heads)
        query, key, value = (
            dense(self.width, name)(h).reshape(shape) for name in ("query", "key", "value")
        )
        features = _relative_features(count)
        bias = self.param("places", nn.initializers.zeros, (features.shape[-1], self.num_heads))
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key) * shape[-1] ** -0.5
        scores = scores + jnp.einsum("qkf,fh->hqk", features, bias)[None]
        scores = jnp.where(seen[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        read = jnp.einsum("bhqk,bkhc->bqhc", nn.softmax(scores), value)
        return dense(self.width, "out")(read.reshape(h.shape))


def _for_tokens(of_kinds: Float[Array, "B 2 W"], count: int) -> Float[Array, "B L W"]:
    """What holds for the static token, and for all dynamic ones, at each of ``count`` tokens."""
    kinds = np.eye(2, dtype=np.float32)[np.minimum(np.arange(count), 1)]
    return jnp.einsum("lk,bkw->blw", kinds, of_kinds)  # its gradient is a product, too, no scatter


def _distances_to_ends(length: Int[Array, "B"], steps: int) -> Float[Array, "B V F"]:
    """Exponentials of the distances to the first and to the last real step."""
    from_start = jnp.broadcast_to(jnp.arange(steps)[None, :], (len(length), steps))
    to_end = jnp.abs(length[:, None] - 1 - from_start)  # any value will do for padding
    distances = jnp.stack([from_start, to_end], axis=-1)
    decays = jnp.exp(-distances[..., None] / SCALES[None, None, None, :])
    return decays.reshape(*decays.shape[:2], -1).astype(jnp.float32)


def _relative_features(count: int) -> Float[np.ndarray, "L L F"]:
    """What two tokens know about their places: exponentials of the distance, or who is static."""
    apart = np.arange(count)[:, None] - np.arange(count)[None, :]
    decays = np.exp(-np.abs(apart)[..., None] / SCALES)
    static = np.arange(count) == 0
    reads, is_read = static[:, None] & ~static[None, :], static[None, :] & ~static[:, None]
    among_steps = ~static[:, None] & ~static[None, :]
    sides = [decays * (apart > 0)[..., None], decays * (apart < 0)[..., None]]
    features = np.concatenate([*sides, (apart == 0)[..., None]], axis=-1)
    features = features * among_steps[..., None]
    return np.concatenate([features, reads[..., None], is_read[..., None]], axis=-1).astype(
        np.float32
    )
