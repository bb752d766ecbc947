"""Every array of the golden cases, computed here from the converted weights.

``pytest tests/convert/test_golden.py -s`` prints the worst relative error of each array.
"""

import flax.linen as nn
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffsda_jax.convert.mapping import rules
from diffsda_jax.convert.torch_file import StateDict
from diffsda_jax.convert.weights import convert_state_dict
from diffsda_jax.diffusion import edm, samplers, schedules
from diffsda_jax.factors import Factors, mix
from diffsda_jax.model import make_model

pytestmark = pytest.mark.usefixtures("optimised")

TOLERANCE, SAMPLED_TOLERANCE = 1e-4, 1e-3
SAMPLED = ("sample_T4", "sample_T4_traj", "xT_inv_T4", "rec_T4", "swap_T4")
INPUTS = ("x", "rnd_normal", "noise", "mask", "xT")
STEPS = 4
# Intermediate -> module whose output it is.
MODULES = {
    "temb": "denoiser/noise",
    "aemb": "denoiser/factors",
    "F": "denoiser",
    "enc_rnn_out": "encoder/recurrence/rnn_dynamic",
}
VIDEO_MODULES = {
    "enc_tail": "encoder/front/unet/conv_out",
    "enc_head": "encoder/front/unet/conv_in",
    "enc_down0": "encoder/front/unet/down_0_0",
    "enc_mid0": "encoder/front/unet/middle_0",
    "bb_down0": "denoiser/unet/down_0_0",
    "bb_mid0": "denoiser/unet/middle_0",
}


class Case:
    """One case: inputs in our layout, and functions compiled once."""

    def __init__(self, name):
        self.name, self.manifest = name, golden_cases.manifest(name)
        self.expected = golden_cases.arrays(name)
        state = StateDict(golden_cases.state_dict(name), "", (), 0, ())
        converted = convert_state_dict(state, name)
        self.spec = converted.spec
        self.variables = jax.device_put(converted.variables)
        self.model, self.video = make_model(self.spec), self.spec.kind == "video"
        self.x, self.noise, self.start = map(self.ours, ("x", "noise", "xT"))
        hparams, normal = self.manifest["hparams"], self.expected["rnd_normal"].astype(np.float64)
        sigma = np.exp(normal * hparams["P_std"] + hparams["P_mean"])
        self.sigma = jnp.asarray(sigma, jnp.float32)
        mask = self.expected.get("mask")
        self.mask = None if mask is None else jnp.asarray(mask == 0)  # there 1 = missing
        self.loss_and_grads = jax.jit(jax.value_and_grad(self.loss, has_aux=True))
        self.sample = jax.jit(self.make_sampler(80.0, schedules.sigma_grid(STEPS), 1.0))
        self.invert = jax.jit(self.make_sampler(1.0, schedules.inversion_grid(STEPS), 80.0))

    def ours(self, name):
        """An array of the case, channels last."""
        array = self.expected[name]
        return jnp.asarray(np.moveaxis(array, -3, -1) if self.video else array)

    def loss(self, params, x_noisy, sigma):
        """The loss, and as aux the factors, D, and input and output of every module."""
        seen = {}

        def record(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if context.method_name == "__call__":
                seen["/".join(context.module.path)] = (args[0], out)
            return out

        variables = {"params": params, "constants": self.variables["constants"]}
        with nn.intercept_methods(record):
            factors = self.model.apply(variables, self.x, method="encode")
            x_denoised = self.model.apply(variables, x_noisy, sigma, factors, method="denoise")
        loss = edm.denoising_loss(x_denoised, self.x, edm.loss_weight(sigma), self.mask)
        wanted = [*MODULES.values(), *VIDEO_MODULES.values(), "encoder/front"]
        wanted += ["encoder/recurrence/lstm", "encoder/recurrence/lstm_reverse"]
        return loss, (factors, x_denoised, {key: seen[key] for key in wanted if key in seen})

    def make_sampler(self, scale, grid, divisor):
        def run(x_start, factors):
            def denoise(x, sigma):
                levels = jnp.full(x.shape[:2], sigma)
                return self.model.apply(self.variables, x, levels, factors, method="denoise")

            return samplers.heun(denoise, scale * x_start, grid, trajectory=True) / divisor

        return run

    def condition(self, factors):
        """``a``: dynamic, then static, at every step."""
        shape = (*factors.dynamic.shape[:2], factors.static.shape[-1])
        static = np.broadcast_to(np.asarray(factors.static)[:, None, :], shape)
        return np.concatenate([factors.dynamic, static], axis=-1)

    def relative_error(self, name, got):
        """Largest difference over the largest value; ``got`` in our layout, any leading axes."""
        expected, got = self.expected[name].astype(np.float64), np.asarray(got, np.float64)
        if self.video and got.ndim >= 4:
            got = np.moveaxis(got, -1, -3)
        difference = got.reshape(expected.shape) - expected
        return float(np.abs(difference).max() / np.abs(expected).max())


def adamw_step(params, grads):
    """Clipping at norm 1 and one AdamW step, on one flat vector: 300 small arrays take long."""
    leaves, structure = jax.tree.flatten(params)
    flat, grad = (
        jnp.asarray(np.concatenate([np.ravel(leaf) for leaf in tree]))
        for tree in (leaves, jax.tree.leaves(grads))
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b1=0.9, b2=0.999, weight_decay=1e-5)
    )
    updates, _ = optimizer.update(grad, optimizer.init(flat), flat)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(np.asarray(optax.apply_updates(flat, updates)), ends)
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def compute(case):
    """Name -> our value of every array of the case, and the gradients."""
    params = case.variables["params"]
    epsilon = edm.expand(case.sigma, case.x.ndim) * case.noise
    x_noisy = case.x + epsilon
    (loss, (factors, x_denoised, seen)), grads = case.loss_and_grads(params, x_noisy, case.sigma)
    modules = MODULES | (VIDEO_MODULES if case.video else {"enc_mlp": "encoder/front"})
    values = {name: seen[path][1] for name, path in modules.items()}
    both = [seen[f"encoder/recurrence/lstm{end}"][1][1] for end in ("", "_reverse")]
    values["enc_lstm_out"] = np.concatenate(both, axis=-1)
    values["F_in"] = seen["denoiser"][0]
    values |= {"s": factors.static, "d": factors.dynamic, "a": case.condition(factors)}
    values |= {"sigma": case.sigma, "epsilon": epsilon, "D": x_denoised, "loss": loss}
    values["weight"] = edm.loss_weight(case.sigma)
    grads = jax.device_get(grads)
    values["grad_norm"] = np.sqrt(sum(np.vdot(g, g) for g in jax.tree.leaves(grads)))

    updated = adamw_step(params, grads)
    values["loss_after_step"] = case.loss_and_grads(updated, x_noisy, case.sigma)[0][0]
    same_level = jnp.full_like(case.sigma, 3.0)
    values["D_idx"] = case.loss_and_grads(params, case.x + 3 * case.noise, same_level)[0][1][1]

    trajectory = case.sample(case.start, factors)
    values |= {"sample_T4": trajectory[-1], "sample_T4_traj": trajectory}
    values["xT_inv_T4"] = case.invert(case.x, factors)[-1]
    values["rec_T4"] = case.sample(values["xT_inv_T4"], factors)[-1]
    donors = Factors(static=factors.static, dynamic=jnp.roll(factors.dynamic, -1, axis=0))
    swapped = mix(static_from=factors, dynamic_from=donors)
    values["a_swap"] = case.condition(swapped)
    values["swap_T4"] = case.sample(case.start, swapped)[-1]
    values |= {f"t_steps_T{n}": schedules.sigma_grid(n) for n in (4, 32)}
    return values, grads


@pytest.fixture(scope="module", params=golden_cases.CASES)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def computed(case):
    return compute(case)


def test_every_array_of_the_case(case, computed):
    values, _ = computed
    wanted = {key for key in case.expected if not key.endswith("_f32")} - set(INPUTS)
    assert set(values) == wanted
    errors = {name: case.relative_error(name, value) for name, value in values.items()}
    print(f"\n{case.name}")
    for name, error in sorted(errors.items()):
        print(f"  {name:16} {error:.1e}")
    allowed = {name: SAMPLED_TOLERANCE if name in SAMPLED else TOLERANCE for name in errors}
    assert {name: e for name, e in errors.items() if not e < allowed[name]} == {}


def test_the_step_changes_the_loss_as_expected(case, computed):
    """The change itself, which is much smaller than the loss."""
    values, expected = computed[0], case.expected
    change = float(values["loss_after_step"]) - float(values["loss"])
    assert change == pytest.approx(expected["loss_after_step"] - expected["loss"], rel=1e-3)


def test_gradient_norm_of_every_parameter(case, computed):
    """Transposing keeps norms. Some true gradients are 0 (a bias before a norm): hence a floor."""
    grads, floor = computed[1], 1e-3 * float(case.expected["grad_norm"])
    expected, errors = case.manifest["grad_norms"], {}
    for rule in rules(case.spec):
        if rule.path[0] == "params":
            grad = grads
            for part in rule.path[1:]:
                grad = grad[part]
            difference = abs(float(np.linalg.norm(grad)) - expected[rule.key])
            errors[rule.key] = difference / max(expected[rule.key], floor)
    assert set(errors) == set(expected)
    print(f"\n{case.name}: gradient norms {max(errors.values()):.1e}")
    assert {key: e for key, e in errors.items() if not e < TOLERANCE} == {}


@pytest.mark.parametrize("broken", ["condition order", "gate order"])
def test_usual_porting_mistakes_show(case, computed, broken):
    """Control: the comparison is sharp enough to see what goes wrong in ports."""
    values = computed[0]
    if broken == "condition order":
        got, name = np.roll(np.asarray(values["a"]), 1, axis=-1), "a"
    else:
        params = jax.tree.map(np.asarray, case.variables["params"])
        lstm = params["encoder"]["recurrence"]["lstm"]
        for key, value in lstm.items():
            i, f, g, o = np.split(value, 4, axis=-1)
            lstm[key] = np.concatenate([i, f, o, g], axis=-1)
        x_noisy = case.x + values["epsilon"]
        got, name = case.loss_and_grads(params, x_noisy, case.sigma)[0][1][1], "D"
    assert case.relative_error(name, got) > 10 * TOLERANCE
