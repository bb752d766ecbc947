"""State dicts of the released priors over the factors: recognition, description, and rules.

``LatentDiff`` has one network over all factors, ``LatentDiffSplit`` one over s and one over d. The
number of diffusion steps and their variances are in no file; those of the release are taken.
"""

import re
from collections.abc import Iterable, Iterator

from diffsda_jax.convert.infer_spec import Reader, Shapes, indices
from diffsda_jax.convert.mapping import Path, Rule
from diffsda_jax.nets.skip_mlp import NUM_LAYERS, STEP_FEATURES
from diffsda_jax.prior_spec import PriorSpec

CLASSES = {"reference": "LatentDiff", "independent": "LatentDiffSplit"}
# Name of a network in the file -> here.
NETWORKS = {
    "reference": {"backbone": "both"},
    "independent": {"backbone_s": "static", "backbone_d": "dynamic"},
}
_OWN = re.compile(r"backbone(_s|_d)?\.(time_embed\.0\.weight|layers\.\d+\.linear_emb\.)")


def recognises(keys: Iterable[str]) -> bool:
    """Whether some keys are a prior's; no sequence model has them."""
    return any(_OWN.match(key) for key in keys)


def infer_spec(shapes: Shapes, factor_dims: tuple[int, int] | None) -> PriorSpec:
    """Builds the description from shapes and the sizes of the factors.

    Args:
      shapes: key -> shape.
      factor_dims: S and D, which the flat vector of a ``LatentDiff`` does not tell; None = unknown.

    Raises:
      ValueError: sizes that are not known or contradict each other, or another number of layers.
    """
    form = "reference" if any(key.startswith("backbone.") for key in shapes) else "independent"
    reader, sizes = Reader(shapes), []
    for network in NETWORKS[form]:
        sizes.append(reader.size(f"{network}.time_embed.0.weight", 0, 2, "the size of the factors"))
        features = reader.size(f"{network}.time_embed.0.weight", 1, 2, "the step embedding")
        layers = 1 + max(indices(shapes, f"{network}.layers", "linear"), default=-1)
        if layers != NUM_LAYERS or features != STEP_FEATURES:
            raise ValueError(
                f"{network!r} has {layers} layers and a step embedding of {features}; only priors "
                f"with {NUM_LAYERS} and {STEP_FEATURES}, as released, can be converted."
            )
    total, known = sum(sizes), f"{CLASSES[form]} over {sum(sizes)} values"
    if factor_dims is None:
        raise ValueError(
            f"The state dict is of a {known}, which do not say how many are static; give "
            "--static_dim and --dynamic_dim of the sequence model it belongs to."
        )
    static_dim, dynamic_dim = factor_dims
    length, rest = divmod(total - static_dim, dynamic_dim) if dynamic_dim > 0 else (0, 0)
    if static_dim < 1 or length < 1 or rest or (len(sizes) == 2 and sizes[0] != static_dim):
        raise ValueError(
            f"static_dim is {static_dim} and dynamic_dim {dynamic_dim}, but the state dict is of a "
            f"{known}{f' ({sizes[0]} static)' if len(sizes) == 2 else ''}; needed: static_dim + "
            "steps * dynamic_dim."
        )
    return PriorSpec(form, static_dim, dynamic_dim, length)


def rules(spec: PriorSpec) -> list[Rule]:
    """All rules of one prior; every variable appears exactly once."""
    found: list[Rule] = []
    for source, name in NETWORKS[spec.form].items():
        path = ("params", name)
        found += _layer(f"{source}.time_embed.0", (*path, "step_0"))
        found += _layer(f"{source}.time_embed.2", (*path, "step_1"))
        for i in range(NUM_LAYERS):
            layer = f"{source}.layers.{i}"
            found += _layer(f"{layer}.linear", (*path, f"dense_{i}"))
            if i < NUM_LAYERS - 1:
                scale = f"{layer}.linear_emb", (*path, f"scale_{i}")
                found += _layer(*scale, alias=f"{layer}.cond_layers.1")
                found += _layer(f"{layer}.norm", (*path, f"norm_{i}"), norm=True)
    return found


def _layer(source: str, path: Path, alias: str | None = None, norm: bool = False) -> Iterator[Rule]:
    """Weight and bias of a linear layer or of a normalisation."""
    weight = ("scale", "copy") if norm else ("kernel", "linear")
    for key, (name, layout) in {"weight": weight, "bias": ("bias", "copy")}.items():
        yield Rule(f"{source}.{key}", (*path, name), layout, alias and f"{alias}.{key}")
