"""The paper's causal recurrence, or the released code's that sees the future?

Japanese vowels, 300 training steps instead of 1,000, so numbers are worse than in docs/results.md.
`lstm` reads s from the last output of a causal LSTM and d from a second causal LSTM; `reference` is
the released code's bidirectional LSTM with a plain recurrence for d. Both without and with this
package's bottleneck on d (bounded, with noise).
Runtime: 8 CPU minutes in all, 4 min 19 s with --jobs=2 on two cores (AMD EPYC).
Command: python -m diffsda_jax.study --study=studies/recurrence.py --out=runs/recurrence
"""

from diffsda_jax.study import Metric, Study

FREE = {"model.dynamic_activation": "linear", "loss.dynamic_noise": 0.0}


def get_study():
    """Four models with three seeds."""
    return Study(
        title="Recurrence of the encoder",
        question="Does a causal d lose anything against one that sees the whole sequence?",
        config="configs/japanese_vowels.py",
        common={
            "train.num_steps": 300,
            "train.checkpoint_every_steps": 300,
            "eval.parts": ("verification", "probes", "reconstruction"),
            "eval.num_swaps": 100,
            "eval.num_steps": 12,
        },
        variants={
            "lstm": {"model.recurrence": "lstm"},
            "reference": {"model.recurrence": "reference"},
            "lstm, d not limited": {"model.recurrence": "lstm"} | FREE,
            "reference, d not limited": {"model.recurrence": "reference"} | FREE,
        },
        metrics=[
            Metric("verification/static_eer_percent", "static EER %", "low"),
            Metric("verification/dynamic_eer_percent", "dynamic EER %", "high"),
            Metric("verification/gap_points", "gap", "high"),
            Metric("probes/d_mean_to_static_percent", "speaker from the mean of d %", "low"),
            Metric("reconstruction/random_nmse", "error of reconstruction", "low"),
        ],
    )
