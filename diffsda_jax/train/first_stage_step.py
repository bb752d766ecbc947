"""The loss of a frame autoencoder and its jitted training step; pure functions.

References:
  van den Oord et al.: VQ-VAE, NIPS 2017; Esser et al.: Taming transformers (VQGAN), CVPR 2021;
  Rombach et al.: Latent diffusion, CVPR 2022, section 3.1 and appendix on autoencoders; Lim and Ye:
  Geometric GAN, 2017 (hinge loss).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int

from diffsda_jax import sharding
from diffsda_jax.first_stage.nets import make_model
from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.nets.applied import applied
from diffsda_jax.nets.layers import fold_sequence
from diffsda_jax.rngs import stream
from diffsda_jax.train.state import TrainState, create_state, place_state
from diffsda_jax.train.step import Metrics, StepFn, ema_decay, jit_step

Perceptual = Callable[[Array, Array], Array]
Fetch = Callable[[Any], Any]  # of weights that are split over devices, whole to each of them
_GENERATOR, _DISCRIMINATOR = "generator", "discriminator"  # items of ``TrainState.opt_state``
_SMALLEST_NORM = 1e-6  # added to the norm that the adaptive weight divides by
_LARGEST_WEIGHT = 1e4
_stop = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class FirstStageLoss:
    """Weights of what is added to the mean absolute error; that of L1 is 1.

    Attributes:
      l2_weight: of the mean squared error.
      perceptual: distance of two batches of frames, one number for each; None = no such term.
      perceptual_weight: of its mean.
      commitment_weight: beta, of the term that draws the encoder to its codes; the term that draws
        codes to the encoder has weight 1 (VQ).
      kl_weight: of the divergence in nats, summed over an image's latent and divided by the number
        of values in its frame, as if both this and L1 were sums (KL).

    Raises:
      ValueError: a negative weight.
    """

    l2_weight: float = 0.0
    perceptual: Perceptual | None = None
    perceptual_weight: float = 1.0
    commitment_weight: float = 0.25
    kl_weight: float = 1e-6

    def __post_init__(self):
        """Checks the weights."""
        for name in ("l2_weight", "perceptual_weight", "commitment_weight", "kl_weight"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"first_stage_training.{name} is {value}; allowed: 0 or more.")


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The discriminator, and how it takes part.

    Attributes:
      model: gives a score for each patch of images ``[N, H, W, C]``.
      optimizer: of the discriminator.
      weight: of the generator's loss, multiplied by ``adaptive_weight``.
      start_step: steps done without it; until then it is not trained either.

    Raises:
      ValueError: ``weight`` not above 0, or a negative ``start_step``.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    weight: float
    start_step: int

    def __post_init__(self):
        """Checks the numbers."""
        if not self.weight > 0:
            raise ValueError(
                f"first_stage_training.discriminator_weight is {self.weight}; allowed: above 0, or "
                "0 for none."
            )
        if self.start_step < 0:
            raise ValueError(
                f"first_stage_training.discriminator_start_step is {self.start_step}; allowed: 0 "
                "or more."
            )


def straight_through(
    latents: Float[Array, "N h w E"], codes: Float[Array, "N h w E"]
) -> Float[Array, "N h w E"]:
    """The codes, bit by bit, whose gradient goes to the latents and not to the codebook."""
    return _stop(codes) + (latents - _stop(latents))


def vq_loss(
    latents: Float[Array, "N h w E"], codes: Float[Array, "N h w E"], commitment_weight: float
) -> Float[Array, ""]:
    """``mean (sg[z] - e)^2 + beta mean (z - sg[e])^2``; sg stops the gradient.

    References:
      van den Oord et al. 2017, equation 3, with means over all values of all latents.
    """
    codebook = jnp.square(_stop(latents) - codes).mean()
    return codebook + commitment_weight * jnp.square(latents - _stop(codes)).mean()


def kl_divergence(
    mean: Float[Array, "N h w E"], log_variance: Float[Array, "N h w E"]
) -> Float[Array, ""]:
    """From a unit normal, in nats: the sum over a latent, the mean over images."""
    terms = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
    return 0.5 * terms.sum((1, 2, 3)).mean()


def discriminator_loss(
    real: Float[Array, "N h w"], fake: Float[Array, "N h w"]
) -> Float[Array, ""]:
    """Hinge loss of the scores: real ones should exceed 1, fake ones lie below -1."""
    return 0.5 * (nn.relu(1 - real).mean() + nn.relu(1 + fake).mean())


def adaptive_weight(
    reconstruction: Float[Array, "*kernel"], adversarial: Float[Array, "*kernel"]
) -> Float[Array, ""]:
    """Ratio of the norms of two losses' gradients for the decoder's last kernel, at most 10^4.

    References:
      Esser et al. 2021, equation 7.
    """
    ratio = jnp.linalg.norm(reconstruction.ravel()) / (
        jnp.linalg.norm(adversarial.ravel()) + _SMALLEST_NORM
    )
    return jnp.minimum(ratio, _LARGEST_WEIGHT)


def perplexity(indices: Int[Array, "*pixels"], codebook_size: int) -> Float[Array, ""]:
    """``exp`` of the entropy of how often each code is used: 1 (always one) to K (all alike)."""
    counts = jnp.bincount(indices.ravel(), length=codebook_size)
    shares = counts / indices.size
    return jnp.exp(-jnp.sum(shares * jnp.log(jnp.maximum(shares, 1e-12))))


def reconstruction_loss(
    decoded: Float[Array, "N H W C"], images: Float[Array, "N H W C"], loss: FirstStageLoss
) -> tuple[Float[Array, ""], Metrics]:
    """L1, and with weights above 0 L2 and the perceptual distance; each part as a scalar metric."""
    metrics = {"l1": jnp.abs(decoded - images).mean()}
    total = metrics["l1"]
    if loss.l2_weight:
        metrics["l2"] = jnp.square(decoded - images).mean()
        total = total + loss.l2_weight * metrics["l2"]
    if loss.perceptual is not None and loss.perceptual_weight:
        metrics["perceptual"] = loss.perceptual(in_colour(images), in_colour(decoded)).mean()
        total = total + loss.perceptual_weight * metrics["perceptual"]
    return total, metrics


def in_colour(images: Float[Array, "N H W C"]) -> Float[Array, "N H W C3"]:
    """Frames of one channel with three equal ones, as networks for photographs want them."""
    return jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def make_forward(spec: FirstStageSpec, loss: FirstStageLoss) -> Callable[..., Any]:
    """Builds ``forward(params, images, key) -> ((decoded, latent_loss), metrics)``.

    A VQ decodes the nearest codes (distances in float32), a KL a draw from its posterior.
    ``latent_loss`` is ``vq_loss`` or the weighted ``kl_divergence``.
    """
    model = make_model(spec)

    def decode(module: nn.Module, latents: Array) -> Array:
        return module.decoder(module.after_latent(latents))  # without another quantisation

    def forward(params: Any, images: Array, key: Array) -> tuple[tuple[Array, Array], Metrics]:
        variables = {"params": params}
        if spec.kind == "vq":
            latents = applied(model, variables, images, method="encode")
            codes, indices = applied(model, variables, _stop(latents), method="quantize")
            latent_loss = vq_loss(latents, codes, loss.commitment_weight)
            metrics = {
                "quantization": jnp.square(latents - codes).mean(),
                "codebook_perplexity": perplexity(indices, spec.codebook_size),
            }
            latents = straight_through(latents, codes)
        else:
            mean, log_variance = applied(model, variables, images, method="moments")
            metrics = {"kl": kl_divergence(mean, log_variance)}
            latent_loss = loss.kl_weight * metrics["kl"] / (images.size // len(images))
            noise = jax.random.normal(stream(key, "posterior"), mean.shape, mean.dtype)
            latents = mean + jnp.exp(0.5 * log_variance) * noise
        return (applied(model, variables, latents, method=decode), latent_loss), metrics

    return forward


def create_first_stage_state(
    variables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    adversary: Adversary | None,
    *,
    image_shape: tuple[int, ...],
    key: Array,
    mesh: Mesh,
    rules: Sequence[sharding.Rule] = (),
) -> TrainState:
    """State at step 0.

    The discriminator, which inference never reads, lies in ``opt_state`` beside its optimiser, so
    that ``params`` and ``ema`` are those of the autoencoder alone.

    Args:
      variables: of the autoencoder.
      optimizer: of the autoencoder.
      adversary: None = no discriminator.
      image_shape: (H, W, C) of a frame.
      key: draws the discriminator's weights.
      mesh: where the state lives.
      rules: which arrays are split how, see ``sharding.state_sharding``.
    """
    state = create_state(variables, optimizer)
    opt_state = {_GENERATOR: state.opt_state}
    if adversary is not None:
        frame = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        weights = adversary.model.lazy_init(key, frame)
        opt_state[_DISCRIMINATOR] = {
            "params": weights,
            "opt_state": adversary.optimizer.init(weights),
        }
    return place_state(state.replace(opt_state=opt_state), mesh, rules)


def make_contest(adversary: Adversary, fetch: Fetch) -> Callable[..., Any]:
    """Builds what a discriminator adds to a step.

    Returns:
      ``contest(step, discriminator, images, decoded, towards, last_kernel) -> (pull, trained,
      metrics)``: ``discriminator`` is its item of ``opt_state``, ``towards`` the gradient of the
      reconstruction loss for ``decoded``, and ``last_kernel`` maps such a gradient to that of the
      decoder's last kernel; ``pull`` is the weighted gradient of the adversarial loss for
      ``decoded`` and ``metrics["adversarial"]`` that loss. Before ``start_step`` pull and metrics
      are 0, and nothing is trained.
    """

    def score(params: Any, images: Array) -> Array:
        return applied(adversary.model, fetch(params), images)

    def contest(
        step: Array,
        discriminator: Any,
        images: Array,
        decoded: Array,
        towards: Array,
        last_kernel: Callable[[Array], Array],
    ) -> tuple[Array, Any, Metrics]:
        def join(discriminator: Any) -> tuple[Array, Any, tuple[Array, ...]]:
            params = discriminator["params"]
            fooling, pull = jax.value_and_grad(lambda x: -score(params, x).mean())(decoded)
            ratio = adaptive_weight(last_kernel(towards), last_kernel(pull))
            weight = adversary.weight * ratio

            def telling(params: Any) -> Array:
                return discriminator_loss(score(params, images), score(params, decoded))

            error, grads = jax.value_and_grad(telling)(params)
            updates, moments = adversary.optimizer.update(grads, discriminator["opt_state"], params)
            trained = {"params": optax.apply_updates(params, updates), "opt_state": moments}
            return weight * pull, trained, (weight * fooling, ratio, error)

        def stay_out(discriminator: Any) -> tuple[Array, Any, tuple[Array, ...]]:
            return jnp.zeros_like(decoded), discriminator, (jnp.zeros(()),) * 3

        begun = step >= adversary.start_step
        pull, trained, numbers = jax.lax.cond(begun, join, stay_out, discriminator)
        names = ("adversarial", "adaptive_weight", "discriminator")
        return pull, trained, dict(zip(names, numbers, strict=True))

    return contest


def make_gradient(
    spec: FirstStageSpec,
    loss: FirstStageLoss,
    adversary: Adversary | None,
    fetch: Fetch = lambda params: params,
) -> Callable[..., Any]:
    """Builds ``gradient(state, images, key) -> (grads, discriminator, metrics)``.

    ``grads`` is that of the autoencoder, ``discriminator`` the item of the next ``opt_state`` (None
    without an adversary); ``metrics`` has ``loss`` and its parts.
    """
    forward = make_forward(spec, loss)
    contest = None if adversary is None else make_contest(adversary, fetch)
    errors = jax.value_and_grad(reconstruction_loss, has_aux=True)

    def gradient(state: TrainState, images: Array, key: Array) -> tuple[Any, Any, Metrics]:
        (decoded, latent_loss), pull_back, metrics = jax.vjp(
            lambda params: forward(fetch(params), images, key), state.params, has_aux=True
        )
        (error, parts), towards = errors(decoded, images, loss)
        metrics |= {"loss": error + latent_loss} | parts
        discriminator = None
        if contest is not None:

            def last_kernel(towards: Array) -> Array:
                (of_params,) = pull_back((towards, jnp.zeros_like(latent_loss)))
                return of_params["decoder"]["conv_out"]["kernel"]

            known = state.opt_state[_DISCRIMINATOR]
            pull, discriminator, parts = contest(
                state.step, known, images, decoded, towards, last_kernel
            )
            towards = towards + pull
            metrics |= {"loss": metrics["loss"] + parts["adversarial"]} | parts
        # Both losses reach the parameters through the decoded frames: one way back serves both.
        (grads,) = pull_back((towards, jnp.ones_like(latent_loss)))
        return grads, discriminator, metrics

    return gradient


def make_first_stage_step(
    spec: FirstStageSpec,
    loss: FirstStageLoss,
    optimizer: optax.GradientTransformation,
    adversary: Adversary | None = None,
    *,
    schedule: optax.Schedule,
    ema_half_life_examples: float,
    batch_size: int,
    mesh: Mesh,
    rules: Sequence[sharding.Rule] = (),
) -> StepFn:
    """Builds the jitted step of the autoencoder and, if there is one, of its discriminator.

    Args:
      spec: the autoencoder.
      loss: what is minimised.
      optimizer: of ``make_optimizer``, for the autoencoder.
      adversary: None = no discriminator.
      schedule: to report the learning rate used.
      ema_half_life_examples: see ``train.step.ema_decay``; an example is a window of V frames.
      batch_size: windows B in a batch; a step sees B V frames.
      mesh: of ``sharding.make_mesh``.
      rules: which arrays of the state are split how, see ``sharding.state_sharding``.

    Returns:
      As ``train.step.make_train_step``; the batch has ``x`` ``[B, V, H, W, C]`` in [-1, 1], and
      the metrics the parts of the loss, too.

    Raises:
      ValueError: the batch size cannot be split evenly over the devices, or a negative half life.
    """
    sharding.check_batch_size(batch_size, mesh)
    ema_decay(0, ema_half_life_examples, batch_size)
    fetch = functools.partial(sharding.gather, mesh=mesh, rules=rules)
    gradient = make_gradient(spec, loss, adversary, fetch)

    def train_step(
        state: TrainState, batch: dict[str, Array], root_key: Array
    ) -> tuple[TrainState, Metrics]:
        key = stream(root_key, "train", state.step)
        grads, discriminator, metrics = gradient(state, fold_sequence(batch["x"]), key)
        known = state.opt_state[_GENERATOR]
        updates, moments = optimizer.update(grads, known, state.params)
        opt_state = {_GENERATOR: moments}
        if discriminator is not None:
            opt_state[_DISCRIMINATOR] = discriminator
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(state.step, ema_half_life_examples, batch_size)
        ema = jax.tree.map(lambda old, new: new + decay * (old - new), state.ema, params)
        metrics |= {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        return state.replace(
            step=state.step + 1, params=params, ema=ema, opt_state=opt_state
        ), metrics

    return jit_step(train_step, mesh, rules)
