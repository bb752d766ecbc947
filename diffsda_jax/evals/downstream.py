"""What the factors are good for: the tasks of a data set, and factors that are known."""

import numpy as np

from diffsda_jax.evals import disentanglement
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.probe_training import ProbeSpec
from diffsda_jax.evals.task_probes import task_probe
from diffsda_jax.factors import mix

Outcome = tuple[dict[str, float], list[str]]


def tasks(context: Context) -> Outcome:
    """The supervised probes of the data set, each repeated over seeds: mean and spread."""
    if not context.tasks:
        return {}, ["tasks skipped: the data set has none"]
    metrics, notes = {}, []
    for task in context.tasks:
        if task.target not in context.train or task.target not in context.test:
            notes.append(f"task {task.name} skipped: the data have no {task.target}")
            continue
        # The data pipeline makes numbers of all that is known; classes are to be counted.
        kind = np.float32 if task.kind == "regression" else np.int32
        train_target, test_target = (
            data[task.target].astype(kind) for data in (context.train, context.test)
        )
        try:
            result = task_probe(
                ProbeSpec(task.kind, task.hidden, num_steps=context.settings.task_steps),
                context.codes("train"),
                context.codes("test"),
                train_target,
                test_target,
                train_length=context.train.get("length"),
                test_length=context.test.get("length"),
                form=context.settings.form,
            )
        except ValueError as error:  # such as no positive among a few test sequences
            notes.append(f"task {task.name} skipped: {error}")
            continue
        for name, (mean, spread) in result.metrics.items():
            metrics[f"{task.name}_{name}"] = mean
            if name in result.per_seed:
                metrics[f"{task.name}_{name}_std"] = spread
    return metrics, notes


def known_factors(context: Context) -> Outcome:
    """How codes and known factors correspond, and how near swaps are to the true swaps."""
    if "factor_static" not in context.train or "factor_dynamic" not in context.train:
        return {}, ["known_factors skipped: the true factors of the data are not known"]
    known_train, known_test = (
        disentanglement.TrueFactors(data["factor_static"], data["factor_dynamic"])
        for data in (context.train, context.test)
    )
    metrics = disentanglement.block_dci(
        context.codes("train"),
        context.codes("test"),
        known_train,
        known_test,
        seed=context.settings.seed,
    )
    reason = context.why_no_swaps()
    if context.render is None or reason:
        return metrics, [f"true swaps skipped: {reason or 'the data cannot be made'}"]
    static_index, dynamic_index = context.pairs()
    mixed = mix(
        static_from=context.test_factors[static_index],
        dynamic_from=context.test_factors[dynamic_index],
    )
    x_true = context.render(
        context.test["factor_static"][static_index], context.test["factor_dynamic"][dynamic_index]
    )
    errors = disentanglement.true_swap_error(
        context.decode(mixed, static_index, dynamic_index),
        np.asarray(x_true),
        context.test["x"][static_index],
        context.test["x"][dynamic_index],
    )
    return metrics | {f"true_{name}": value for name, value in errors.items()}, []
