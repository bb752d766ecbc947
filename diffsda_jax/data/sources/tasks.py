"""What a data set is used for downstream: what is to be read from the codes, how, and the score."""

import dataclasses

KINDS = ("classes", "binary", "regression")
FACTORS = ("static", "both")
PROBES = ("mlp", "lstm")
METRICS = {
    "classes": ("accuracy",),
    "binary": ("auprc", "auroc", "accuracy"),
    "regression": ("mae", "mse"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One downstream task of a data set.

    Attributes:
        name: in reports.
        target: key of the elements that holds the answer, a scalar or `[K]`.
        kind: "classes", "binary" (an int of 0 or 1) or "regression".
        factors: which codes the probe sees, "static" or "both".
        num_classes: number of classes, 2 for binary, None for regression.
        probe: "mlp" (on s, or on s and the codes d of all steps) or "lstm" (over the steps).
        hidden: widths of the probe's hidden layers with a ReLU after each; for an LSTM the first
            is the size of its state.
        metrics: the scores, out of `METRICS[kind]`.
    """

    name: str
    target: str
    kind: str
    factors: str
    num_classes: int | None
    probe: str
    hidden: tuple[int, ...]
    metrics: tuple[str, ...]

    def __post_init__(self):
        """Rejects values outside these.

        Raises:
            ValueError: the first of them, with what is allowed.
        """
        for what, value, allowed in (
            ("kind", self.kind, KINDS),
            ("factors", self.factors, FACTORS),
            ("probe", self.probe, PROBES),
        ):
            if value not in allowed:
                raise ValueError(f"{what} {value!r} of task {self.name!r}: use one of {allowed}")
        fits = {
            "classes": (self.num_classes or 0) > 1,
            "binary": self.num_classes == 2,
            "regression": self.num_classes is None,
        }
        if not fits[self.kind]:
            raise ValueError(
                f"num_classes={self.num_classes} of task {self.name!r} of kind {self.kind!r}: use "
                "None for regression, 2 for binary and 2 or more for classes"
            )
        for metric in self.metrics:
            if metric not in METRICS[self.kind]:
                raise ValueError(
                    f"metric {metric!r} of task {self.name!r} of kind {self.kind!r}: use one of "
                    f"{METRICS[self.kind]}"
                )
