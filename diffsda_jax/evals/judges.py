"""Small classifiers trained on real clips; they judge what a swap kept.

A judge has two heads, one for the static and one for the dynamic label. It never sees factors or
generated clips while it is trained.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from diffsda_jax.data.transforms import expand_mask
from diffsda_jax.evals.interface import (
    Clips,
    Labels,
    Lengths,
    observed_values,
    padded_batches,
    valid_steps,
)
from diffsda_jax.nets.applied import applied
from diffsda_jax.rngs import stream

_SMALLEST_MAP = 4  # convolutions halve a frame until its side is at most this


class PatchConv(nn.Module):
    """Convolution as shifted slices and one matrix product, "same" padding.

    XLA runs a convolution inside a ``lax.scan`` on the CPU tens of times slower than this.

    Attributes:
      features: output channels.
      kernel: side of the window, odd, along each axis between the first and the last.
      stride: step of the window along each of these axes.
      dilation: distance of the places that a window reads.
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "N *places C"]) -> Float[Array, "N *reduced K"]:
        """Convolve over the axes between the first and the last."""
        places = x.shape[1:-1]
        half = self.kernel // 2 * self.dilation
        padded = jnp.pad(x, [(0, 0), *[(half, half)] * len(places), (0, 0)])
        shifted = []
        for offset in itertools.product(range(self.kernel), repeat=len(places)):
            window = tuple(
                slice(self.dilation * first, self.dilation * first + size, self.stride)
                for first, size in zip(offset, places, strict=True)
            )
            shifted.append(padded[(slice(None), *window)])
        return nn.Dense(self.features)(jnp.concatenate(shifted, axis=-1))


class SeriesTrunk(nn.Module):
    """Temporal convolutions over steps; padding steps are zeroed before each of them.

    Wider and wider ones follow until the middle knows the whole sequence: what comes first and
    what last may be all that a label says.
    """

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V F"], valid: Bool[Array, "B V"]
    ) -> Float[Array, "B V K"]:
        """Features of each step that know the others near it, the middle's all."""
        keep = valid[..., None]
        hidden = nn.silu(nn.LayerNorm()(nn.Dense(self.width)(x)))
        for dilation in _dilations(x.shape[1]):
            update = PatchConv(self.width, 5, dilation=dilation)(jnp.where(keep, hidden, 0.0))
            hidden = hidden + nn.silu(nn.LayerNorm()(update))
        return hidden


def _dilations(num_steps: int) -> list[int]:
    """Of windows of 5 places: 1 and 1, then 4 times as far until they span the sequence."""
    dilations = [1, 1]
    while 1 + 4 * sum(dilations) < num_steps:
        dilations.append(4 * dilations[-1])
    return dilations


class JudgeNet(nn.Module):
    """Convolutions per frame (video only), then temporal ones, and a head for each label.

    Attributes:
      num_static: classes of the static label, 0 for no such head.
      num_dynamic: classes of the dynamic label, 0 for no such head.
      width: channels of the first layer.
    """

    num_static: int
    num_dynamic: int
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V *element"], valid: Bool[Array, "B V"]
    ) -> tuple[dict[str, Float[Array, "B _"]], Float[Array, "B E"]]:
        """Logits by head, and what the heads read; ``valid`` is False at padding steps."""
        appearance, steps = self._frames(x) if x.ndim == 5 else (None, x)
        pooled = _pool(SeriesTrunk(2 * self.width)(steps, valid), valid)
        appearance = pooled if appearance is None else _pool(appearance, valid)
        logits, read = {}, []
        if self.num_static:
            logits["static"] = nn.Dense(self.num_static, name="static")(appearance)
            read.append(appearance)
        if self.num_dynamic:
            logits["dynamic"] = nn.Dense(self.num_dynamic, name="dynamic")(pooled)
            # Both heads of a series read the same.
            read += [pooled] if x.ndim == 5 or not read else []
        return logits, jnp.concatenate(read, axis=-1)

    def _frames(
        self, x: Float[Array, "B V H W C"]
    ) -> tuple[Float[Array, "B V K"], Float[Array, "B V L"]]:
        """Per frame: what is seen anywhere (largest over places), and the whole map flattened."""
        maps = x.reshape(-1, *x.shape[2:])
        width, kernel = self.width, 5
        while min(maps.shape[1:3]) > _SMALLEST_MAP:
            maps = nn.silu(nn.LayerNorm()(PatchConv(width, kernel, stride=2)(maps)))
            width, kernel = min(2 * width, 4 * self.width), 3
        appearance = jnp.max(maps, axis=(1, 2))
        return (
            appearance.reshape(*x.shape[:2], -1),
            maps.reshape(*x.shape[:2], -1),
        )


def _pool(steps: Float[Array, "B V K"], valid: Bool[Array, "B V"]) -> Float[Array, "B K2"]:
    """Mean and largest value over the real steps."""
    keep = valid[..., None]
    mean = jnp.sum(jnp.where(keep, steps, 0.0), axis=1) / jnp.maximum(jnp.sum(keep, axis=1), 1)
    largest = jnp.max(jnp.where(keep, steps, -jnp.inf), axis=1)
    return jnp.concatenate([mean, largest], axis=-1)


@dataclass(frozen=True)
class Seen:
    """What a judge sees in N clips.

    Attributes:
      features: what its heads read, ``[N, E]``: the static head's, then the dynamic head's.
      probabilities: of the classes of each head, ``[N, C]``, by ``static`` and ``dynamic``.
    """

    features: Float[np.ndarray, "N E"]
    probabilities: dict[str, Float[np.ndarray, "N _"]]

    def __getitem__(self, index: Any) -> "Seen":
        """What was seen in some of the clips."""
        chosen = {name: values[index] for name, values in self.probabilities.items()}
        return Seen(self.features[index], chosen)


@dataclass(frozen=True)
class Judge:
    """A trained judge.

    Attributes:
      net: the network.
      params: its parameters.
      batch_size: clips judged at once; one compiled program whatever their number.
    """

    net: JudgeNet
    params: Any
    batch_size: int = 128

    def predict(
        self,
        x: Clips,
        length: Lengths | None = None,
        mask: Bool[np.ndarray, "B V *maskdims"] | None = None,
    ) -> dict[str, Labels]:
        """Most likely labels ``static`` and ``dynamic`` (those it was trained on), int ``[B]``.

        Args:
          x: clips ``[B, V, ...]``, normalised like the training clips.
          length: number of real steps; None means all V.
          mask: True = observed; unobserved values are set to 0.
        """
        seen = self.see(x, length, mask).probabilities
        return {name: np.argmax(values, -1) for name, values in seen.items()}

    def see(
        self,
        x: Clips,
        length: Lengths | None = None,
        mask: Bool[np.ndarray, "B V *maskdims"] | None = None,
    ) -> Seen:
        """Features and probabilities of the classes; the arguments are those of `predict`."""
        x, valid = _prepare(x, length, mask)
        parts: list[tuple] = []
        for index, count in padded_batches(len(x), self.batch_size):
            answer = _apply(self.net, self.params, x[index], valid[index])
            parts.append(
                jax.tree.map(lambda values, count=count: np.asarray(values)[:count], answer)
            )
        probabilities, features = jax.tree.map(lambda *values: np.concatenate(values), *parts)
        return Seen(features, probabilities)

    def accuracy(self, data: dict) -> dict[str, float]:
        """Share of real clips judged rightly: ``static_accuracy_percent`` and ``dynamic_...``.

        Args:
          data: ``x`` and labels, maybe ``length`` and ``mask``.
        """
        judged = self.predict(data["x"], data.get("length"), data.get("mask"))
        return {
            f"{name}_accuracy_percent": 100.0 * float(np.mean(labels == data[f"{name}_label"]))
            for name, labels in judged.items()
            if f"{name}_label" in data
        }


def train_judge(
    x: Clips,
    *,
    static_label: Labels | None = None,
    dynamic_label: Labels | None = None,
    length: Lengths | None = None,
    mask: Bool[np.ndarray, "B V *maskdims"] | None = None,
    num_steps: int = 800,
    batch_size: int = 64,
    width: int = 32,
    learning_rate: float = 3e-3,
    input_noise: float = 0.05,
    seed: int = 0,
) -> Judge:
    """Train a judge on real clips of the training split; the same seed gives the same judge.

    Args:
      x: real clips, ``[N, V, H, W, C]`` or ``[N, V, F]``.
      static_label: classes 0.. of the static factor, or None.
      dynamic_label: classes 0.. of the dynamics, or None.
      length: number of real steps; None means all V.
      mask: True = observed.
      num_steps: optimiser steps.
      batch_size: clips a step.
      width: channels of the first layer.
      learning_rate: at the start of the cosine.
      input_noise: standard deviation of the noise added to clips, so that faint traces in
        generated clips do not mislead the judge.
      seed: of initial weights, batches and noise.

    Raises:
      ValueError: no label is given.
    """
    labels = {
        name: jnp.asarray(label, jnp.int32)
        for name, label in (("static", static_label), ("dynamic", dynamic_label))
        if label is not None
    }
    if not labels:
        raise ValueError(
            "train_judge: static_label and dynamic_label are both None; at least one is needed; "
            "leave the judge out for data without labels."
        )
    classes = {name: int(label.max()) + 1 for name, label in labels.items()}
    net = JudgeNet(classes.get("static", 0), classes.get("dynamic", 0), width)
    x, valid = _prepare(x, length, mask)
    params = _fit(
        net,
        jnp.asarray(x),
        jnp.asarray(valid),
        labels,
        num_steps=num_steps,
        batch_size=min(batch_size, len(x)),
        learning_rate=learning_rate,
        input_noise=input_noise,
        root=jax.random.key(seed),
    )
    return Judge(net=net, params=jax.block_until_ready(params))


def make_judge(train: dict[str, Any], num_steps: int, seed: int) -> Judge | None:
    """A judge for the labels that vary in the training split, or None.

    Args:
      train: arrays of real clips, with labels or without.
      num_steps: optimiser steps.
      seed: of weights, batches and noise.
    """
    labels = {
        name: train[name]
        for name in ("static_label", "dynamic_label")
        if name in train and len(np.unique(train[name])) > 1
    }
    if not labels:
        return None
    return train_judge(
        train["x"],
        **labels,
        length=train.get("length"),
        mask=train.get("mask"),
        num_steps=num_steps,
        seed=seed,
    )


_SETTINGS = ("num_steps", "batch_size", "learning_rate", "input_noise")


@functools.partial(jax.jit, static_argnums=0, static_argnames=_SETTINGS)
def _fit(
    net: JudgeNet,
    x: Float[Array, "N V *element"],
    valid: Bool[Array, "N V"],
    labels: dict[str, Int[Array, " N"]],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    input_noise: float,
    root: Array,
) -> Any:
    """Parameters after ``num_steps`` steps on random batches."""
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(learning_rate, num_steps), weight_decay=1e-3
    )
    params = net.init(stream(root, "params"), x[:1], valid[:1])

    def loss_fn(params: Any, index: Array, noise_key: Array) -> Array:
        clips = x[index]
        noise = jax.random.normal(noise_key, clips.shape, clips.dtype)
        logits, _ = applied(net, params, clips + input_noise * noise, valid[index])
        return sum(
            optax.softmax_cross_entropy_with_integer_labels(logits[name], label[index]).mean()
            for name, label in labels.items()
        )

    def step(carry: Any, number: Array) -> tuple[Any, None]:
        params, state = carry
        index = jax.random.randint(stream(root, "batch", number), (batch_size,), 0, len(x))
        gradient = jax.grad(loss_fn)(params, index, stream(root, "noise", number))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))
    return params


@functools.partial(jax.jit, static_argnums=0)
def _apply(
    net: JudgeNet, params: Any, x: Float[Array, "B V *element"], valid: Bool[Array, "B V"]
) -> tuple[dict[str, Float[Array, "B _"]], Float[Array, "B E"]]:
    """Probabilities by head, and features."""
    logits, features = applied(net, params, x, valid)
    return {name: nn.softmax(values) for name, values in logits.items()}, features


def _prepare(
    x: Clips, length: Lengths | None, mask: Bool[np.ndarray, "B V *maskdims"] | None
) -> tuple[Float[np.ndarray, "B V *element"], Bool[np.ndarray, "B V"]]:
    """Clips with unobserved values and padding at 0, and which steps are real."""
    valid = valid_steps(x.shape, length)
    observed = expand_mask(observed_values(x.shape, length, mask), x.ndim)
    return np.where(observed, x, 0).astype(np.float32), valid
