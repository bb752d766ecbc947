"""Random state dicts of released classes of any size, by inverting the layouts."""

import functools

import jax
import numpy as np

from diffsda_jax.convert.mapping import rules
from diffsda_jax.model import ModelSpec, variable_shapes

INVERSE = {
    "copy": lambda array: array,
    "linear": lambda array: array.T,
    "conv": lambda array: array.transpose(3, 2, 0, 1),
    "pointwise": lambda array: array.T[:, :, None, None],
}
AXES = {"copy": (0, 1), "linear": (1, 0), "conv": (3, 2, 0, 1), "pointwise": (1, 0)}

SPECS = {
    "four levels": ModelSpec(
        kind="video",
        shape=(16, 16, 4),
        static_dim=7,
        dynamic_dim=3,
        hidden_dim=5,
        recurrence="reference",
        channels=32,
        encoder_channels=64,
        channel_mults=(1, 2, 2, 2),
        attention_levels=(2,),
    ),
    "one level": ModelSpec(
        kind="video",
        shape=(6, 6, 1),
        static_dim=2,
        dynamic_dim=1,
        hidden_dim=3,
        recurrence="reference",
        channels=32,
        encoder_channels=32,
        channel_mults=(2,),
        attention_levels=(),
    ),
    "attention everywhere": ModelSpec(
        kind="video",
        shape=(8, 8, 3),
        static_dim=4,
        dynamic_dim=2,
        hidden_dim=6,
        recurrence="reference",
        channels=64,
        encoder_channels=32,
        channel_mults=(1, 1, 3),
        attention_levels=(0, 2),
    ),
    "series": ModelSpec(
        kind="series",
        shape=(13,),
        static_dim=16,
        dynamic_dim=2,
        hidden_dim=9,
        recurrence="reference",
        width=5,
        encoder_width=3,
    ),
}


def key_shapes(rules, variables) -> dict[str, tuple[int, ...]]:
    """Key -> shape in the state dict, from a tree of the variables' shapes; nothing is computed."""
    shapes = {}
    for rule in rules:
        value = variables
        for part in rule.path:
            value = value[part]
        shape = tuple(value.shape[i] for i in AXES[rule.layout] if i < len(value.shape))
        shapes[rule.key] = shape + (1, 1) * (rule.layout == "pointwise")
    return shapes


def unused_shapes(shapes) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the cross-attention that released video classes have beside others."""
    unused, end = {}, "block1.2.weight"
    for key, shape in shapes.items():
        if key.startswith("backbone.") and key.endswith(end):
            group, width = f"{key.removesuffix(end)}crossattn", shape[0]
            for name in ("proj_q", "proj_k", "proj_v", "proj"):
                unused[f"{group}.{name}.weight"] = (width, width, 1, 1)
                unused[f"{group}.{name}.bias"] = (width,)
            unused |= {f"{group}.group_norm.{name}": (width,) for name in ("weight", "bias")}
    return unused


@functools.cache
def random_variables(spec: ModelSpec):
    """Variables of a model with random values."""
    generator, shapes = np.random.default_rng(0), variable_shapes(spec)
    return jax.tree.map(lambda s: generator.normal(size=s.shape).astype(np.float32), shapes)


def state_dict(spec: ModelSpec) -> dict[str, np.ndarray]:
    """The state dict of a released class of this size with the values of ``random_variables``."""
    variables, tensors = random_variables(spec), {}
    for rule in rules(spec):
        value = variables
        for part in rule.path:
            value = value[part]
        tensors[rule.key] = np.ascontiguousarray(INVERSE[rule.layout](value))
        if rule.alias:
            tensors[rule.alias] = tensors[rule.key]
    for key in list(tensors):
        if (
            spec.kind == "video"
            and key.startswith("backbone.")
            and key.endswith(".block1.0.weight")
        ):
            block = key.removesuffix("block1.0.weight")
            tensors[f"{block}crossattn.proj_q.weight"] = np.zeros((2, 2, 1, 1), np.float32)
    return tensors
