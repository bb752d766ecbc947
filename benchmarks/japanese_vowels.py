"""Speaker verification on Japanese vowels over seeds: recurrences and widths of d side by side.

Protocol: utterances resampled to 20 frames, scaled to std 0.5, S = 16, hidden 64, both MLPs m = 32,
learning rate 1e-3 with cosine, 1,000 steps, batch 32 (64 in `original` and `original_lstm`); scored
on the 370 test utterances.

    python benchmarks/japanese_vowels.py --seeds=0,1,2,3,4 --output=runs/vowels.jsonl

Runs that the output file already holds are not repeated;
`--output=benchmarks/japanese_vowels.jsonl`
prints the table of the published records.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import jax
import numpy as np

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import sharding
from diffsda_jax.command_line import prepare_jax
from diffsda_jax.evals.evaluate import evaluate
from diffsda_jax.pipeline import DiffSDA
from diffsda_jax.runs import EvalRunner
from diffsda_jax.train.step import BATCH_KEYS

CONFIG = Path(__file__).parent.parent / "configs" / "japanese_vowels.py"
COLUMNS = {
    "static EER": "verification/static_eer_percent",
    "dynamic EER": "verification/dynamic_eer_percent",
    "gap": "verification/gap_points",
    "probe s": "probes/s_to_static_percent",
    "probe mean d": "probes/d_mean_to_static_percent",
}


def train_and_score(variant: str, dynamic_dim: int, seed: int) -> dict[str, float]:
    """Trains one model and returns its metrics and the seconds it took."""
    config = configuration.load_config(f"{CONFIG}:{variant}")
    config.model.dynamic_dim = dynamic_dim
    config.seed = seed
    experiment, mesh = experiments.build(config), sharding.make_mesh()
    transformation, step_fn, _ = experiments.make_training(experiment, mesh)
    state = experiments.initial_state(experiment, transformation, mesh)
    iterator, key = experiments.make_iterator(experiment, seed), jax.random.key(seed)
    began = time.perf_counter()
    for _ in range(config.train.num_steps):
        batch = next(iterator)
        batch = sharding.shard_batch({k: batch[k] for k in BATCH_KEYS}, mesh)
        state, metrics = step_fn(state, batch, key)
        jax.block_until_ready(metrics)
    seconds = time.perf_counter() - began
    variables = {"params": state.ema, "constants": state.constants}
    data = EvalRunner(experiment)
    result = evaluate(
        DiffSDA(experiment.spec, variables),
        data.load("train", 10_000),
        data.load("test", 10_000),
        kind="series",
        parts=("verification", "probes"),
        pictures=False,
    )
    return {name: result.metrics[key] for name, key in COLUMNS.items()} | {"seconds": seconds}


def table(records: list[dict]) -> str:
    """Mean and standard deviation (n - 1) over seeds of each variant, as Markdown."""
    lines = [f"| variant | D | seeds | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for variant, width in dict.fromkeys((r["variant"], r["dynamic_dim"]) for r in records):
        rows = [r for r in records if (r["variant"], r["dynamic_dim"]) == (variant, width)]
        cells = []
        for name in COLUMNS:
            values = [r[name] for r in rows]
            spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
            cells.append(f"{np.mean(values):.1f} ± {spread:.1f}")
        lines.append(f"| {variant} | {width} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--dynamic_dims", default="2,4")
    parser.add_argument("--variants", default="default,reference,original,original_lstm")
    parser.add_argument("--output", default="runs/vowels.jsonl")
    arguments = parser.parse_args()
    prepare_jax()
    output = Path(arguments.output)
    records = [json.loads(x) for x in output.read_text().splitlines()] if output.exists() else []
    for width in map(int, arguments.dynamic_dims.split(",")):
        for variant in arguments.variants.split(","):
            for seed in map(int, arguments.seeds.split(",")):
                run = {"variant": variant, "dynamic_dim": width, "seed": seed}
                if any(run.items() <= record.items() for record in records):
                    continue
                scores = train_and_score(variant, width, seed)
                machine = {"jax": jax.__version__, "machine": platform.machine()}
                records.append(run | scores | machine)
                output.parent.mkdir(parents=True, exist_ok=True)
                with output.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
                print(
                    {k: round(v, 2) if isinstance(v, float) else v for k, v in run.items()},
                    {k: round(v, 2) for k, v in scores.items()},
                    flush=True,
                )
    print(table(records))


if __name__ == "__main__":
    main()
