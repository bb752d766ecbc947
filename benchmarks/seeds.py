"""Variants of a config over seeds, side by side: trains what is missing and prints the table.

    python benchmarks/seeds.py --config=configs/librispeech.py --variants=espeak,espeak_reference \
        --seeds=0,1,2,3,4 --out=runs/espeak_seeds \
        --metrics=verification/static_eer_percent,verification/dynamic_eer_percent \
        -- --config.source.options.root=corpus

Each run is `python -m diffsda_jax.main` in a folder of its own, `OUT/<variant>_<seed>`, so it can
be stopped and started again; what stands after `--` is given to all of them. Mean and standard
deviation (n - 1) are over seeds, which are of the training, the order of the data and the
evaluation.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def load_metrics(workdir: Path) -> dict[str, float] | None:
    """Metrics of the newest evaluation of a run, or None where there is none."""
    files = sorted((workdir / "eval").glob("*/metrics.json"))
    return json.loads(files[-1].read_text())["metrics"] if files else None


def run(config: str, workdir: Path, seed: int, options: list[str]) -> dict[str, float]:
    """Trains and evaluates one seed, unless that was done before; ends the program on an error."""
    if (metrics := load_metrics(workdir)) is not None:
        return metrics
    command = [sys.executable, "-m", "diffsda_jax.main", f"--config={config}"]
    command += [f"--workdir={workdir}", f"--config.seed={seed}", f"--config.eval.seed={seed}"]
    if status := subprocess.run([*command, *options]).returncode:
        sys.exit(f"seeds: the run in {workdir} ended with status {status}.")
    metrics = load_metrics(workdir)
    return metrics if metrics is not None else sys.exit(f"seeds: {workdir} has no evaluation.")


def check_names(names: list[str], metrics: dict[str, float]) -> None:
    """Ends the program if a metric was misspelt, after the first run and not after the last."""
    if unknown := [name for name in names if name not in metrics]:
        sys.exit(f"seeds: no metric {unknown[0]!r}; there are {', '.join(sorted(metrics))}.")


def row(variant: str, results: list[dict[str, float]], names: list[str]) -> str:
    """One line of the Markdown table."""
    cells = [variant, str(len(results))]
    for name in names:
        values = [result[name] for result in results]
        spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
        cells.append(f"{np.mean(values):.3g} ± {spread:.2g}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="file, without a variant")
    parser.add_argument("--variants", default="default")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--metrics", required=True, help="names in metrics.json, with commas")
    parser.add_argument("options", nargs="*", help="after --: options of all runs")
    arguments = parser.parse_args()
    names, lines = arguments.metrics.split(","), []
    for variant in arguments.variants.split(","):
        results = []
        for seed in map(int, arguments.seeds.split(",")):
            workdir = arguments.out / f"{variant}_{seed}"
            results.append(run(f"{arguments.config}:{variant}", workdir, seed, arguments.options))
            check_names(names, results[-1])
        lines.append(row(variant, results, names))
    print(f"| variant | seeds | {' | '.join(names)} |")
    print("|---" * (2 + len(names)) + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
