"""Checks the options of ``--mode=explore``."""

from ml_collections import ConfigDict

from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.exploration import LEVELS

CODES_FROM = ("auto", "prior", "data")


def check_options(config: ConfigDict) -> ConfigDict:
    """The section ``explore``, checked before anything is loaded.

    Raises:
      ValueError: names the option, its value and what is allowed.
    """
    options = config.explore
    if config.model.static_per_step:
        raise ValueError(
            "model.static_per_step is True, but components are of one static factor a sequence; "
            "explore a model that was trained with --config.model.static_per_step=False."
        )
    check_choice("explore.codes_from", options.codes_from, CODES_FROM)
    check_choice("explore.dynamic_over", options.dynamic_over, LEVELS)
    counts = {"num_codes": 8, "num_components": 1, "num_clips": 1, "num_traversals": 1}
    for name, least in (counts | {"num_random": 2, "num_refits": 2, "num_alphas": 3}).items():
        if options[name] < least:
            raise ValueError(f"config.explore.{name} is {options[name]}; allowed: {least} or more.")
    if options.num_alphas % 2 == 0:
        raise ValueError(
            f"config.explore.num_alphas is {options.num_alphas}; use an odd number, so that the "
            "middle column is the clip itself."
        )
    if options.alpha < 0:
        raise ValueError(f"config.explore.alpha is {options.alpha}; allowed: 0 (auto) or more.")
    return options
