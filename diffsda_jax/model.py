"""The model: an encoder to factors and a denoiser conditioned on them, in EDM form."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from diffsda_jax.diffusion import edm
from diffsda_jax.factors import Factors
from diffsda_jax.nets.encoder import Encoder, VideoFront
from diffsda_jax.nets.layers import WIDTH_MULTIPLE, fold_sequence, repeat_each
from diffsda_jax.nets.step_mlp import StepMLPDenoiser, StepMLPEncoder
from diffsda_jax.nets.unet import UNet, UNetDenoiser

KINDS = ("video", "series")
RECURRENCES = ("lstm", "reference")
ACTIVATIONS = ("linear", "tanh")
PRECISIONS = ("float32", "bfloat16")
LSTM_BACKENDS = ("scan", "cudnn")
_LEAST_USELESS_SIGMA = 1e6  # beyond any data; squares of larger ones leave float32
# Fields that only series know, and what they are for video.
SERIES_ONLY = {"encoder_sees_mask": False, "center_dynamic": False}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything that fixes the parameters' shapes and the model's behaviour; plain values only.

    Attributes:
      kind: ``"video"`` (U-Nets) or ``"series"`` (per-step MLPs: series, cepstra, mel frames).
      shape: of one step, ``(H, W, C)`` or ``(F,)``.
      static_dim: S.
      dynamic_dim: D.
      hidden_dim: width of the recurrence.
      recurrence: ``"lstm"`` (the paper's, causal) or ``"reference"`` (the released code's).
      dynamic_activation: of the read-out of d: ``"linear"`` (paper and released code) or
        ``"tanh"``, which bounds d so that noise added to it in training (``loss.dynamic_noise``)
        limits what it can hold.
      static_per_step: s is read at every step, ``s^tau = Linear(h^tau)``, instead of once for the
        sequence. The structure that keeps what changes out of s is gone then: an ablation.
      center_dynamic: d is read from each sequence with its features' mean and spread over the steps
        taken out, and is centred itself, so that what all steps share is left to s (series). d then
        depends on the whole sequence. Off in the paper and the released code.
      channels: base width of the denoiser's U-Net, a multiple of 8 (video).
      encoder_channels: base width of the encoder's U-Net, a multiple of 8 (video).
      encoder_pooling: the encoder's U-Net also gives features that do not depend on where in the
        frame something is, beside its map (video). Off in the paper and the released code.
      template_channels: of an image drawn from the factors that the denoiser's U-Net sees beside
        its input (video). 0 (off) in the paper and the released code.
      channel_mults: width of each level of both U-Nets as a multiple of the base (video).
      attention_levels: indices of the levels with attention (video).
      width: m of the denoiser's MLP, whose layers are 4 m wide (series).
      encoder_width: m of the encoder's MLP (series).
      encoder_sees_mask: the encoder is told which values are observed (series). Off in the paper
        and the released code.
      dropout: rate in both networks, rounded to a multiple of 2^-8 (0.1 is 0.1016), see
        ``nets.layers.Dropout``.
      precision: of the numbers that large products multiply, ``"float32"`` or ``"bfloat16"``;
        sums, parameters, and what the networks take and give are float32. In the U-Nets of video
        what lies between the products is bfloat16 too.
      lstm_backend: ``"scan"``, or ``"cudnn"``: on one NVIDIA GPU cuDNN runs the LSTMs, the same to
        rounding; elsewhere the scan does.
      remat: the gradient computes what lies within a block again instead of keeping it: less
        memory for about a third more work. The numbers are the same.
      sigma_data: standard deviation of the data that the preconditioning assumes.
      sigma_min: lowest noise level of the samplers.
      sigma_max: highest noise level of the samplers.
      rho: how strongly the samplers' levels crowd at low noise.
      sigma_identity: level at which D is the identity: 0 for a denoiser, ``sigma_min`` for one that
        was distilled to a consistency function.
    """

    kind: str
    shape: tuple[int, ...]
    static_dim: int
    dynamic_dim: int
    hidden_dim: int
    recurrence: str = "lstm"
    dynamic_activation: str = "linear"
    static_per_step: bool = False
    center_dynamic: bool = False
    channels: int = 64
    encoder_channels: int = 64
    encoder_pooling: bool = False
    template_channels: int = 0
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    attention_levels: tuple[int, ...] = (2,)
    width: int = 256
    encoder_width: int = 128
    encoder_sees_mask: bool = False
    dropout: float = 0.1
    precision: str = "float32"
    lstm_backend: str = "scan"
    remat: bool = False
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_identity: float = 0.0

    def __post_init__(self):
        """Checks values.

        Raises:
          ValueError: one that is not allowed, with the field and what is.
        """
        choices = {
            "kind": KINDS,
            "recurrence": RECURRENCES,
            "dynamic_activation": ACTIVATIONS,
            "precision": PRECISIONS,
            "lstm_backend": LSTM_BACKENDS,
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"model.{field} is {getattr(self, field)!r}; allowed: "
                    f"{', '.join(map(repr, allowed))}."
                )
        for field in ("static_dim", "dynamic_dim", "hidden_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} is {getattr(self, field)}; it must be at least 1.")
        for field in ("width", "encoder_width", "sigma_data", "sigma_min", "rho"):
            if not getattr(self, field) > 0:
                raise ValueError(f"model.{field} is {getattr(self, field)}; it must be above 0.")
        for field in ("sigma_data", "sigma_max"):
            if not getattr(self, field) < _LEAST_USELESS_SIGMA:
                raise ValueError(
                    f"model.{field} is {getattr(self, field)}; it must be below "
                    f"{_LEAST_USELESS_SIGMA:g}."
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}; it must be 0 or more and below 1.")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(
                f"model.sigma_max is {self.sigma_max}; it must be above sigma_min={self.sigma_min}."
            )
        if self.sigma_identity not in (0.0, self.sigma_min):
            raise ValueError(
                f"model.sigma_identity is {self.sigma_identity}; allowed: 0 or sigma_min="
                f"{self.sigma_min}."
            )
        if self.kind == "video":
            self._check_video()
        elif len(self.shape) != 1:
            raise ValueError(
                f"model.shape is {self.shape} for kind 'series'; it must be (features,). Frames "
                "(H, W, C) need kind 'video'."
            )

    def _check_video(self):
        """Checks what the U-Nets need of frame size and widths, and that they can do the rest."""
        for field, off in SERIES_ONLY.items():
            if getattr(self, field) != off:
                raise ValueError(
                    f"model.{field} is {getattr(self, field)!r} for kind 'video'; it is for "
                    f"series; set it to {off!r}."
                )
        if len(self.shape) != 3:
            raise ValueError(f"model.shape is {self.shape} for kind 'video'; it must be (H, W, C).")
        if not self.channel_mults or min(self.channel_mults) < 1:
            raise ValueError(
                f"model.channel_mults is {self.channel_mults}; it must hold a number of 1 or more "
                "for each level."
            )
        if self.template_channels < 0:
            raise ValueError(
                f"model.template_channels is {self.template_channels}; it must be 0 or more."
            )
        factor = 2 ** (len(self.channel_mults) - 1)
        if self.shape[0] % factor or self.shape[1] % factor:
            raise ValueError(
                f"Frames of {self.shape[0]}x{self.shape[1]} cannot be halved "
                f"{len(self.channel_mults) - 1} times; choose a size divisible by {factor} or "
                "fewer model.channel_mults."
            )
        for field in ("channels", "encoder_channels"):
            if getattr(self, field) % WIDTH_MULTIPLE or getattr(self, field) < 1:
                raise ValueError(
                    f"model.{field} is {getattr(self, field)}; GroupNorm needs a multiple of "
                    f"{WIDTH_MULTIPLE}."
                )
        bad = [v for v in self.attention_levels if not 0 <= v < len(self.channel_mults)]
        if bad:
            raise ValueError(
                f"model.attention_levels names level {bad[0]}; there are levels 0 to "
                f"{len(self.channel_mults) - 1} (model.channel_mults)."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Inverse of ``to_dict``.

        Raises:
          ValueError: a field is unknown or missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"model.{unknown[0]} is unknown; known fields: {', '.join(sorted(known))}."
            )
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise ValueError(f"model.{missing[0]} is missing from the model's description.")
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**fields)


class DiffSDAModel(nn.Module):
    """Encoder and denoiser of one ``ModelSpec``.

    Attributes:
      spec: the description.

    References:
      DiffSDA (arXiv 2510.05717), sections 3 and 4.
    """

    spec: ModelSpec

    def setup(self):
        """Makes the two networks."""
        spec, bfloat16 = self.spec, self.spec.precision == "bfloat16"
        if spec.kind == "video":
            unet = functools.partial(
                UNet,
                channel_mults=spec.channel_mults,
                attention_levels=spec.attention_levels,
                dropout=spec.dropout,
                bfloat16=bfloat16,
                remat=spec.remat,
            )
            front: nn.Module = VideoFront(
                unet(1, spec.encoder_channels, tail_gain=1.0), spec.encoder_pooling
            )
            self.denoiser: UNetDenoiser | StepMLPDenoiser = UNetDenoiser(
                unet(spec.shape[-1], spec.channels), spec.template_channels
            )
        else:
            front = StepMLPEncoder(spec.encoder_width, spec.dropout, bfloat16, spec.remat)
            self.denoiser = StepMLPDenoiser(
                spec.shape[0], spec.width, spec.dropout, bfloat16=bfloat16, remat=spec.remat
            )
        self.encoder = Encoder(
            front,
            spec.static_dim,
            spec.dynamic_dim,
            spec.hidden_dim,
            spec.recurrence,
            spec.dynamic_activation == "tanh",
            spec.center_dynamic,
            bfloat16,
            spec.encoder_sees_mask,
            spec.static_per_step,
            spec.lstm_backend == "cudnn",
        )

    def encode(
        self,
        x_clean: Float[Array, "B V *event"],
        length: Int[Array, "B"] | None = None,
        mask: Bool[Array, "B V *maskdims"] | None = None,
        train: bool = False,
    ) -> Factors:
        """Splits clean sequences into factors.

        Args:
          x_clean: normalised data, channels last.
          length: number of real steps of each item, the rest is padding; None = all are real.
          mask: True = observed, for ``encoder_sees_mask``; None = all are.
          train: dropout on (needs the random stream ``dropout``).

        Returns:
          ``static [B, S]`` (``[B, V, S]`` with ``static_per_step``) and ``dynamic [B, V, D]``.
        """
        return self.encoder(x_clean, length, mask, train)

    def denoise(
        self,
        x_noisy: Float[Array, "N V *event"],
        sigma: Float[Array, "N V"],
        factors: Factors,
        train: bool = False,
    ) -> Float[Array, "N V *event"]:
        """``D(x; sigma, z^tau)`` with ``z^tau = (d^tau, s)``.

        Args:
          x_noisy: clean data plus noise of standard deviation sigma.
          sigma: ``[N, V]``, one level for each step.
          factors: what to condition on, of B sequences, with one s each or one a step; with
            N = B K, of each for K copies that follow each other in ``x_noisy``.
          train: dropout on.

        Returns:
          The denoised sequences, shaped like ``x_noisy``.

        References:
          Karras et al. 2022, equation 7.
        """
        c_skip, c_out, c_in, c_noise = edm.preconditioning(
            sigma, self.spec.sigma_data, self.spec.sigma_identity
        )
        static = factors.static
        if static.ndim == 2:
            static = jnp.broadcast_to(
                static[:, None, :], (*factors.dynamic.shape[:2], static.shape[-1])
            )
        condition = jnp.concatenate([factors.dynamic, static], axis=-1)
        x_in = edm.expand(c_in, x_noisy.ndim) * x_noisy
        if self.spec.kind == "video":
            condition = repeat_each(condition, len(x_in))
            x_flat, noise, known = map(fold_sequence, (x_in, c_noise, condition))
            net_out = self.denoiser(x_flat, noise, known, train).reshape(x_noisy.shape)
        else:
            net_out = self.denoiser(x_in, c_noise, condition, train)
        skip = edm.expand(c_skip, x_noisy.ndim) * x_noisy
        return skip + edm.expand(c_out, x_noisy.ndim) * net_out

    def __call__(
        self, x_clean: Float[Array, "B V *event"], sigma: Float[Array, "B V"]
    ) -> Float[Array, "B V *event"]:
        """Encodes and denoises once, at noise levels ``sigma``; what ``init`` traces."""
        return self.denoise(x_clean, sigma, self.encode(x_clean))


def make_model(spec: ModelSpec) -> DiffSDAModel:
    """Builds the linen module of a description."""
    return DiffSDAModel(spec)


def init_variables(spec: ModelSpec, key: Array) -> dict[str, Any]:
    """Initial variables, collections ``params`` and ``constants``.

    Call it outside ``jit``: drawn one parameter after the other, they cost a fraction of the time
    that XLA takes to compile all the draws as one program, and are the same bits.

    Args:
      spec: description of the model.
      key: typed key.

    Returns:
      ``{"params": ..., "constants": ...}``.
    """
    return dict(make_model(spec).lazy_init(key, *_example(spec)))


def variable_shapes(spec: ModelSpec) -> dict[str, Any]:
    """Shapes of the variables of a model, without computing them."""
    return dict(jax.eval_shape(make_model(spec).init, jax.random.key(0), *_example(spec)))


def _example(spec: ModelSpec) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of ``x`` and ``sigma`` to trace with; parameters do not depend on their length."""
    shapes = ((1, 2, *spec.shape), (1, 2))
    x, sigma = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return x, sigma
