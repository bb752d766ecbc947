"""Your own time series: one CSV file, or a folder with one file for each id.

Source: the paper's sizes for ETTh1 and Air Quality (arXiv 2510.05717), narrower for shorter series.
Data: wide (a row for each time, a column for each feature; cut into windows), or, with
`configs/csv.py:long`, long (columns id, time, features; an id is a sequence, padded or cropped to
`data.length`). Empty cells are missing values.
`--config.source.options.static_label_column=NAME` names what stays, for the evaluation.
Command: python -m diffsda_jax.main --config=configs/csv.py --workdir=runs/mine
  --config.source.options.path=/path/to/table.csv --config.data.length=168
Time and result: depend on the data; see docs/data.md.
"""

from diffsda_jax.config import check_variant, default_config, source_config


def get_config(layout="wide"):
    """Windows of 96 steps, for a CPU or one GPU."""
    check_variant(layout, ("wide", "long"))
    config = default_config()
    config.data.length = 96
    if layout == "wide":
        config.source = source_config("csv", length=config.data.get_ref("length"))
    else:
        config.source = source_config("csv", layout="long")
        config.data.length_mode = "pad"
    config.model.static_dim = 16
    config.model.dynamic_dim = 4
    config.model.hidden_dim = 128
    config.model.width = 64
    config.model.encoder_width = 64
    config.optimizer.learning_rate = 3e-4
    config.train.batch_size = 32
    config.train.num_steps = 5_000
    config.eval.num_clips = 256
    config.eval.num_swaps = 64
    return config
