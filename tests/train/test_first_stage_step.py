"""The loss and the training step of frame autoencoders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffsda_jax import sharding
from diffsda_jax.first_stage.nets import make_model, variable_shapes
from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.nets.patch_discriminator import PatchDiscriminator
from diffsda_jax.rngs import stream
from diffsda_jax.train import first_stage_step as steps
from diffsda_jax.train.first_stage_step import Adversary, FirstStageLoss

VQ = FirstStageSpec("vq", 8, (1,), 1, middle_attention=False, codebook_size=5, embed_dim=3)
KL = FirstStageSpec("kl", 8, (1,), 1, middle_attention=False, embed_dim=3)
SIDE = 8


def random_params(spec):
    generator = np.random.default_rng(0)
    shapes = variable_shapes(spec)["params"]
    return jax.tree.map(lambda s: 0.3 * generator.standard_normal(s.shape, np.float32), shapes)


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (4, SIDE, SIDE, 3)), jnp.float32)


def pixels(*values):
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


def test_vq_loss_and_where_its_gradients_go():
    latents, codes = pixels(1.0, 2.0), pixels(0.0, 5.0)
    loss, (to_latents, to_codes) = jax.value_and_grad(steps.vq_loss, (0, 1))(latents, codes, 0.25)
    assert loss == pytest.approx(1.25 * (1 + 9) / 2)
    np.testing.assert_allclose(to_latents.ravel(), [0.25 * 1, 0.25 * -3])
    np.testing.assert_allclose(to_codes.ravel(), [-1, 3])


def test_straight_through_is_the_code_with_the_latents_gradient():
    latents, codes = pixels(1e8, 0.1), pixels(0.3, 0.7)
    value, pull_back = jax.vjp(steps.straight_through, latents, codes)
    np.testing.assert_array_equal(value, codes)
    to_latents, to_codes = pull_back(pixels(3.0, 4.0))
    np.testing.assert_array_equal(to_latents.ravel(), [3, 4])
    np.testing.assert_array_equal(to_codes.ravel(), [0, 0])


def test_kl_divergence_by_hand():
    mean, log_variance = (jnp.zeros((2, 1, 2, 1)).at[0].set(value) for value in (2.0, np.log(4.0)))
    # The first image has two values of (4 + 4 - 1 - ln 4) / 2, the second one none.
    expected = 2 * 0.5 * (4 + 4 - 1 - np.log(4)) / 2
    assert steps.kl_divergence(mean, log_variance) == pytest.approx(expected, rel=1e-6)


def test_hinge_loss_by_hand():
    real, fake = jnp.asarray([[[2.0, 0.5]]]), jnp.asarray([[[-3.0, 1.0]]])
    assert steps.discriminator_loss(real, fake) == 0.5 * (0.25 + 1.0)


def test_adaptive_weight_by_hand():
    reconstruction, adversarial = jnp.asarray([[3.0], [4.0]]), jnp.asarray([[0.0], [2.0]])
    assert steps.adaptive_weight(reconstruction, adversarial) == pytest.approx(2.5, rel=1e-5)
    assert steps.adaptive_weight(reconstruction, 0 * adversarial) == 1e4


@pytest.mark.parametrize(
    ("indices", "expected"), [([1, 1, 1], 1), ([0, 2, 2, 0], 2), ([0, 1, 2, 3], 4)]
)
def test_perplexity_counts_codes(indices, expected):
    found = steps.perplexity(jnp.asarray(indices), 4)
    assert found == pytest.approx(expected, rel=1e-5)


def distance(images, decoded):
    """Of which the order of the arguments can be seen, and the number of channels."""
    assert images.shape[-1] == 3
    return (images - decoded).sum((1, 2, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstruction_loss_by_hand(channels):
    shape = (2, 1, 2, channels)
    images, decoded = jnp.zeros(shape).at[0].set(1.0), jnp.zeros(shape).at[:].set(0.5)
    loss = FirstStageLoss(l2_weight=2.0, perceptual=distance, perceptual_weight=0.1)
    total, parts = steps.reconstruction_loss(decoded, images, loss)
    assert parts == {"l1": 0.5, "l2": 0.25, "perceptual": 0.0}
    assert total == pytest.approx(0.5 + 2 * 0.25)
    total, parts = steps.reconstruction_loss(decoded, images + 1, loss)
    assert parts["perceptual"] == pytest.approx(6.0) and total == pytest.approx(1.0 + 2.5 + 0.6)
    plain = FirstStageLoss()
    assert steps.reconstruction_loss(decoded, images, plain)[1].keys() == {"l1"}


def norms(tree):
    return {name: float(optax.tree.norm(part)) for name, part in tree.items()}


def test_gradients_pass_the_codes_and_the_codebook_learns_from_its_term_only(images):
    params = random_params(VQ)
    forward = steps.make_forward(VQ, FirstStageLoss())

    def both(params):
        _, pull_back, _ = jax.vjp(
            lambda p: forward(p, images, jax.random.key(0)), params, has_aux=True
        )
        ones, zeros = jnp.ones(images.shape), jnp.zeros(images.shape)
        return pull_back((ones, jnp.zeros(())))[0], pull_back((zeros, jnp.ones(())))[0]

    of_frames, of_latents = map(norms, jax.jit(both)(params))
    assert of_frames["encoder"] > 0 and of_frames["before_latent"] > 0
    assert of_frames["codebook"] == 0 and of_frames["decoder"] > 0
    assert of_latents["codebook"] > 0 and of_latents["encoder"] > 0
    assert of_latents["decoder"] == of_latents["after_latent"] == 0


def test_a_vq_is_trained_on_what_it_decodes(images):
    """The very numbers of inference, and the loss of its latents and codes."""
    params = random_params(VQ)
    model, forward = make_model(VQ), steps.make_forward(VQ, FirstStageLoss(commitment_weight=0.5))
    (decoded, latent_loss), metrics = jax.jit(forward)(params, images, jax.random.key(0))

    @jax.jit
    def infer(images):
        apply = functools.partial(model.apply, {"params": params})
        latents = apply(images, method="encode")
        return latents, *apply(latents, method="quantize"), apply(latents, method="decode")

    latents, codes, indices, inferred = infer(images)
    np.testing.assert_allclose(decoded, inferred, rtol=1e-3, atol=1e-4)
    error = np.square(latents - codes).mean()
    assert latent_loss == pytest.approx(1.5 * float(error), rel=1e-3)
    assert metrics["quantization"] == pytest.approx(float(error), rel=1e-3)
    shares = np.bincount(np.ravel(indices)) / indices.size
    entropy = -sum(p * np.log(p) for p in shares if p)
    assert metrics["codebook_perplexity"] == pytest.approx(np.exp(entropy), rel=1e-3)


def test_a_kl_decodes_a_draw_and_weighs_its_divergence_like_a_sum(images):
    params, key = random_params(KL), jax.random.key(3)
    forward = steps.make_forward(KL, FirstStageLoss(kl_weight=1e-2))
    (decoded, latent_loss), metrics = jax.jit(forward)(params, images, key)

    @jax.jit
    def draw(images):
        apply = functools.partial(make_model(KL).apply, {"params": params})
        mean, log_variance = apply(images, method="moments")
        noise = jax.random.normal(stream(key, "posterior"), mean.shape)
        latents = mean + jnp.exp(log_variance / 2) * noise
        return mean, log_variance, apply(latents, method="decode")

    mean, log_variance, drawn = draw(images)
    np.testing.assert_allclose(decoded, drawn, rtol=1e-3, atol=1e-3)
    terms = 0.5 * (np.square(mean) + np.exp(log_variance) - 1 - log_variance)
    assert metrics["kl"] == pytest.approx(float(terms.sum()) / len(images), rel=1e-3)
    assert latent_loss == pytest.approx(1e-2 * float(metrics["kl"]) / (3 * SIDE**2), rel=1e-5)


def adversary(start_step):
    return Adversary(PatchDiscriminator(2, 1), optax.sgd(0.1), weight=0.8, start_step=start_step)


def test_a_discriminator_adds_the_gradient_of_the_loss_written_out(images):
    """One way back through both losses equals the gradient of their sum."""
    rival, params = adversary(2), random_params(VQ)
    loss, key = FirstStageLoss(), jax.random.key(0)
    state = steps.create_first_stage_state(
        {"params": params},
        optax.sgd(0.1),
        rival,
        image_shape=images.shape[1:],
        key=jax.random.key(1),
        mesh=sharding.make_mesh(jax.devices()[:1]),
    )
    forward, known = steps.make_forward(VQ, loss), state.opt_state["discriminator"]
    gradient = jax.jit(steps.make_gradient(VQ, loss, rival))
    late, joined, metrics = gradient(state.replace(step=jnp.asarray(2)), images, key)
    early, waiting, nothing = gradient(state.replace(step=jnp.asarray(1)), images, key)

    def fooled(decoded):
        return -rival.model.apply(known["params"], decoded).mean()

    def written_out(params):
        (decoded, latent_loss), _ = forward(params, images, key)
        first = steps.reconstruction_loss(decoded, images, loss)[0]
        return {"plain": first + latent_loss, "first": first, "fooled": fooled(decoded)}

    grads = jax.jit(jax.jacrev(written_out))(params)
    last = {part: grads[part]["decoder"]["conv_out"]["kernel"] for part in grads}
    weight = 0.8 * np.linalg.norm(last["first"]) / np.linalg.norm(last["fooled"])
    assert metrics["adaptive_weight"] == pytest.approx(weight / 0.8, rel=1e-2)
    assert metrics["discriminator"] > 0 and nothing["discriminator"] == 0
    assert metrics["loss"] - nothing["loss"] == pytest.approx(
        float(metrics["adversarial"]), rel=1e-2
    )
    jax.tree.map(np.testing.assert_array_equal, waiting, known)
    assert norms(joined["params"]) != norms(known["params"])
    sums = jax.tree.map(lambda plain, pull: plain + weight * pull, grads["plain"], grads["fooled"])
    for found, expected in ((early, grads["plain"]), (late, sums)):
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4 * largest)


def test_autoencoder_and_discriminator_are_split_over_devices(images):
    """Two steps on every device's share of the state are those of one device."""
    metrics = []
    for data, fsdp, rules in ((1, 1, ()), (1, 2, (("", "largest"),))):
        mesh = sharding.make_mesh(jax.devices()[: data * fsdp], data, fsdp)
        rival, plain = adversary(0), optax.sgd(0.1)
        state = steps.create_first_stage_state(
            {"params": random_params(VQ)},
            plain,
            rival,
            image_shape=images.shape[1:],
            key=jax.random.key(1),
            mesh=mesh,
            rules=rules,
        )
        step_fn = steps.make_first_stage_step(
            VQ,
            FirstStageLoss(),
            plain,
            rival,
            schedule=lambda step: 0.1,
            ema_half_life_examples=20.0,
            batch_size=2,
            mesh=mesh,
            rules=rules,
        )
        batch = sharding.shard_batch({"x": np.asarray(images[:2, None])}, mesh)
        for _ in range(2):
            state, found = step_fn(state, batch, jax.random.key(0))
        metrics.append({name: float(value) for name, value in found.items()})
        trees = (state.params, state.opt_state["discriminator"]["params"])
        split = [not leaf.is_fully_replicated for leaf in jax.tree.leaves(trees)]
        assert any(split) == (fsdp > 1)
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FirstStageLoss(l2_weight=-1.0), "first_stage_training.l2_weight is -1.0; allow"),
        (lambda: FirstStageLoss(kl_weight=float("nan")), "kl_weight is nan; allowed: 0 or more"),
        (lambda: adversary(-1), "discriminator_start_step is -1; allowed: 0 or more"),
        (
            lambda: Adversary(PatchDiscriminator(), optax.sgd(0.1), -0.5, 0),
            "discriminator_weight is -0.5; allowed: above 0, or 0 for none",
        ),
    ],
)
def test_numbers_that_are_not_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
