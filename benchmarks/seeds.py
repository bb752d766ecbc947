"""Variants of a config over seeds, side by side: a study without a file of its own.

    python benchmarks/seeds.py --config=configs/librispeech.py --variants=espeak,espeak_reference \
        --seeds=0,1,2,3,4 --out=runs/espeak_seeds \
        --metrics=verification/static_eer_percent,verification/dynamic_eer_percent \
        -- --config.source.options.root=corpus

What stands after `--` is given to all runs. It can be stopped and started again, and writes table,
plot and records to OUT, as `python -m diffsda_jax.study` does.
"""

import argparse
import sys
from pathlib import Path

from diffsda_jax.study import Metric, Study
from diffsda_jax.study.__main__ import conduct, parse_seeds
from diffsda_jax.study.description import change_study


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="file, without a variant")
    parser.add_argument("--variants", default="default")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--metrics", required=True, help="names in metrics.json, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, that divide the cores")
    parser.add_argument("options", nargs="*", help="after --: options of all runs")
    arguments = parser.parse_args()
    variants = arguments.variants.split(",")
    study = Study(
        title=f"{arguments.config} over seeds",
        question=f"How do {', '.join(variants)} compare?",
        config=arguments.config,
        variants={name: {"config": f"{arguments.config}:{name}"} for name in variants},
        metrics=[Metric(name, name) for name in arguments.metrics.split(",")],
    )
    try:
        study = change_study(study, arguments.options, parse_seeds(arguments.seeds))
    except (ValueError, OSError) as error:
        sys.exit(f"seeds: {error}")
    sys.exit(int(bool(conduct(study, arguments.out, jobs=arguments.jobs))))


if __name__ == "__main__":
    main()
