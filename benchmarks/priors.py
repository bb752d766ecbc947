"""Forms of the prior over seeds, on the factors of one trained model: Fréchet distance and time.

All forms are trained by the steps of `--mode=prior` on the same factors of the training split, and
their samples are compared with the factors of the test split: the Fréchet distance of the factors
that evaluations print, and the ratio of distances to training and to test sequences (below 1 =
learnt by heart). Training sequences themselves give the distance that a perfect prior would have.

    python benchmarks/priors.py --config=configs/digits.py --workdir=runs/digits \
        --forms=joint:2000,reference:4000,independent:4000 --seeds=0,1,2 --num_clips=2000

`--num_clips` limits generated sources. `--set` changes options of section `prior`.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from turns import add_record, describe_machine

from diffsda_jax import DiffSDA, Factors, Prior, prior_runs, sharding
from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.evals.frechet import frechet_distance
from diffsda_jax.evals.generation import Batch, FactorScale
from diffsda_jax.evals.sample_measures import memorising_ratio
from diffsda_jax.study.description import parse_value
from diffsda_jax.train.state import variables_of

ENCODED_AT_ONCE = 64


def encode_split(model: DiffSDA, experiment: experiments.Experiment, split: str) -> Batch:
    """Factors of a split, in the model's units, and real steps of each item."""
    arrays = experiments.load_split(experiment, split, len(experiment.sources[split]))
    length = np.asarray(arrays.get("length", np.full(len(arrays["x"]), arrays["x"].shape[1])))
    parts = []
    for first in range(0, len(length), ENCODED_AT_ONCE):
        part = slice(first, first + ENCODED_AT_ONCE)
        mask = arrays["mask"][part] if "mask" in arrays else None
        parts.append(model.encode(arrays["x"][part], length[part], mask))
    static, dynamic = (
        np.concatenate([np.asarray(getattr(part, name)) for part in parts])
        for name in ("static", "dynamic")
    )
    return Batch(Factors(static, dynamic), length)


class Comparison:
    """Trains priors on the factors of one model and compares their samples with the test split."""

    def __init__(self, config: configuration.ConfigDict, workdir: str):
        """Encodes both splits."""
        model = DiffSDA.from_checkpoint(workdir)
        experiment = experiments.build(config, None, model.normalizer)
        self.train, self.test = (encode_split(model, experiment, s) for s in ("train", "test"))
        self.scale = FactorScale(self.train.factors, self.train.length)
        real = np.arange(config.data.length)[None] < self.train.length[:, None]
        factors = self.train.factors
        self.normalizers = (
            Normalizer(factors.static.mean(0), factors.static.std(0) + 1e-6, 1.0),
            Normalizer(factors.dynamic[real].mean(0), factors.dynamic[real].std(0) + 1e-6, 1.0),
        )
        dynamic = np.where(real[..., None], self.normalizers[1].apply(factors.dynamic), 0)
        self.batches = {
            "static": self.normalizers[0].apply(factors.static).astype(np.float32),
            "dynamic": dynamic.astype(np.float32),
            "length": self.train.length.astype(np.int32),
        }
        self.floor = self.distance(self.train)

    def distance(self, batch: Batch) -> float:
        """Fréchet distance to the test split."""
        ours, theirs = (self.scale.statistics(each) for each in (batch, self.test))
        return frechet_distance(ours, theirs)

    def run(self, config: configuration.ConfigDict, count: int) -> dict[str, float]:
        """Trains the prior of a config and scores samples as long as test sequences are."""
        spec, mesh = experiments.prior_spec(config), sharding.make_mesh()
        step_fn, state = prior_runs.make_training(config, spec, len(self.train.length), mesh)
        generator, key = np.random.default_rng(config.seed), jax.random.key(config.seed)
        for number in range(config.prior.num_steps):
            if number == 1:  # the first step compiles
                jax.block_until_ready(state)
                began = time.perf_counter()
            drawn = generator.integers(len(self.train.length), size=config.prior.batch_size)
            batch = {name: values[drawn] for name, values in self.batches.items()}
            state, _ = step_fn(state, sharding.shard_batch(batch, mesh), key)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
        prior = Prior(spec, variables_of(state, "ema"), self.normalizers)
        lengths = self.test.length[np.random.default_rng(0).choice(len(self.test.length), count)]
        sampled = prior.sample(count, config.data.length, seed=config.seed, lengths=lengths)
        samples = Batch(Factors(*map(np.asarray, (sampled.static, sampled.dynamic))), lengths)
        flat = (self.scale.flat(batch) for batch in (samples, self.train, self.test))
        return {
            "frechet": self.distance(samples),
            "memorising": memorising_ratio(*flat),
            "seconds": seconds,
        }


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def main() -> None:
    """Trains all forms with all seeds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, help="of the trained model")
    parser.add_argument("--forms", default="joint:2000,reference:4000,independent:4000")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--num_clips", type=int, help="of a source that generates them")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, help="file that results are added to")
    arguments = parser.parse_args()
    config = configuration.load_config(arguments.config)
    if arguments.num_clips is not None:
        config.source.options.num_clips = arguments.num_clips
    for name, _, value in (item.partition("=") for item in arguments.set):
        config.prior[name] = parse_value(value)
    machine = describe_machine([f"jax {jax.__version__}"])
    comparison = Comparison(config, arguments.workdir)
    results = {}
    for form in arguments.forms.split(","):
        config.prior.form, _, num_steps = form.partition(":")
        config.prior.num_steps = int(num_steps)
        results[form] = []
        for seed in map(int, arguments.seeds.split(",")):
            config.seed = seed
            results[form].append(comparison.run(config, arguments.samples))
            print(f"{form}, seed {seed}: {results[form][-1]}", flush=True)
    print("| prior: steps | Fréchet distance | training / test | seconds |\n|---|---|---|---|")
    for form, runs in results.items():
        columns = (spread([run[name] for run in runs]) for name in runs[0])
        print(f"| {form} | " + " | ".join(columns) + " |")
    print(f"training sequences: {comparison.floor:.2f}\n{machine}")
    add_record(arguments.out, machine, results=results, floor=comparison.floor)


if __name__ == "__main__":
    main()
