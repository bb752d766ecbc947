"""Studies: variants of a config over seeds, side by side in one table and one plot.

``python -m diffsda_jax.study --study=studies/X.py --out=DIR`` runs one.
"""

from diffsda_jax.study.description import Metric, Study

__all__ = ["Metric", "Study"]
