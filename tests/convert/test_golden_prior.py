"""Every array of the golden priors, computed here from the converted weights."""

import functools

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax import prior
from diffsda_jax.convert import ConversionError, convert_state_dict
from diffsda_jax.convert import __main__ as command
from diffsda_jax.convert.torch_file import StateDict
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.diffusion import ddpm
from diffsda_jax.nets.skip_mlp import step_features
from diffsda_jax.prior_spec import PriorSpec
from diffsda_jax.train.checkpoint import load_for_inference

pytestmark = pytest.mark.usefixtures("optimised")

TOLERANCE = 1e-4
MANIFEST = golden_cases.manifest("latent_prior")
SIZES = MANIFEST["hparams"]
DIMS = SIZES["s_dim"], SIZES["d_dim"]
FORMS = {"latent_prior": "reference", "latent_prior_split": "independent"}


def tensors(name):
    return golden_cases.draw(**{k: MANIFEST["models"][name][k] for k in ("salt", "entries")})


def convert(name, state=None, dims=DIMS):
    state = tensors(name) if state is None else state
    return convert_state_dict(StateDict(state, "", (), 0, ()), name, factor_dims=dims)


class Case:
    """One prior: its chains compiled once, and the numbers they must give."""

    def __init__(self, name):
        self.name, self.converted = name, convert(name)
        self.inputs = golden_cases.arrays("latent_prior")
        steps = SIZES["diffusion_steps_latent"]
        self.alpha_bars = ddpm.make_alpha_bars(steps, SIZES["beta1"], SIZES["betaT"])
        self.module = prior.make_prior(self.converted.spec)
        self.states = jax.jit(self._run)  # the chain is an argument: one program for all
        self.predict = jax.jit(functools.partial(self.module.apply, self.converted.variables))

    def expected(self, array):
        return self.inputs[array if self.name == "latent_prior" else f"split_{array}"]

    def check(self, array, value):
        wanted = self.expected(array)
        error = np.abs(np.asarray(value) - wanted).max() / np.abs(wanted).max()
        assert error < TOLERANCE, f"{array}: {error}"

    def run(self, chain, start, noise):
        return self.states(chain, self.inputs[start], jnp.asarray(noise))

    def _run(self, chain, start, noise):
        def predict(x, index):
            return self.predict(x, jnp.full(len(start), index))

        return ddpm.run_chain(chain, predict, start, lambda index: noise, trajectory=True)


@pytest.fixture(scope="module", params=FORMS)
def case(request):
    return Case(request.param)


def test_tables():
    arrays = golden_cases.arrays("latent_prior")
    np.testing.assert_allclose(ddpm.make_alpha_bars(), arrays["alpha_bars_1000"], rtol=1e-12)
    features = step_features(jnp.asarray(arrays["idx"], jnp.int32))
    np.testing.assert_allclose(features, arrays["timestep_embedding"], atol=1e-6)


def test_predicted_noise_and_loss(case):
    index = jnp.asarray(case.inputs["idx"], jnp.int32)
    x, noise = case.inputs["x_t"], case.inputs["eps"]
    case.check("eps_pred", case.predict(x, index))
    case.check("eps_pred_idx7", case.predict(x, jnp.full_like(index, 7)))
    case.check("alpha_bars", case.alpha_bars)
    alpha_bar = jnp.asarray(case.alpha_bars, jnp.float32)[index]
    predicted = case.predict(ddpm.add_noise(jnp.asarray(x), jnp.asarray(noise), alpha_bar), index)
    case.check("train_loss", jnp.mean((predicted - noise) ** 2))


def test_chains(case):
    noise = case.inputs["eps"]
    none = np.zeros_like(noise)
    ddim, ancestral = ddpm.ddim_chain(case.alpha_bars), ddpm.ddpm_chain(case.alpha_bars)
    states = case.run(ddim, "xT", none)
    case.check("ddim_traj", states)
    case.check("ddim", states[-1])
    case.check("ddim_noise_eps", case.run(ddim, "xT", noise)[-1])
    reverse = ddpm.ddim_reverse_chain(case.alpha_bars)
    case.check("ddim_reverse", case.run(reverse, "x_t", none)[-1])
    case.check("ddpm_zero_noise", case.run(ancestral, "xT", none)[-1])
    case.check("ddpm_noise_eps", case.run(ancestral, "xT", noise)[-1])


def test_every_key_is_accounted_for(case):
    described = MANIFEST["models"][case.name]
    counts = case.converted.report.counts()
    aliases = sum("alias_of" in entry for entry in described["entries"].values())
    found = {status: count for status, count in counts.items() if count}
    assert found == {"mapped": len(described["entries"]) - aliases, "alias": aliases}
    sizes = [leaf.size for leaf in jax.tree.leaves(case.converted.variables)]
    assert sum(sizes) == described["n_params"]
    assert case.converted.spec == PriorSpec(FORMS[case.name], *DIMS, SIZES["video_length"])


def test_an_alias_alone_will_do():
    state = tensors("latent_prior")
    del state["backbone.layers.3.linear_emb.weight"]
    converted = convert("latent_prior", state)
    jax.tree.map(
        np.testing.assert_array_equal, converted.variables, convert("latent_prior").variables
    )


def test_a_file_that_is_not_whole_is_refused():
    state = tensors("latent_prior_split")
    del state["backbone_d.layers.4.norm.bias"]
    with pytest.raises(ConversionError, match="lacks 1 of .* LatentDiffSplit"):
        convert("latent_prior_split", state)
    short = {k: v for k, v in tensors("latent_prior").items() if ".layers.9." not in k}
    with pytest.raises(ValueError, match="9 layers"):
        convert("latent_prior", short)


@pytest.mark.parametrize(
    ("name", "dims", "match"),
    [
        ("latent_prior", None, "give --static_dim and --dynamic_dim"),
        ("latent_prior", (8, 4), "static_dim is 8 and dynamic_dim 4"),
        ("latent_prior", (8, 0), "dynamic_dim 0"),
        ("latent_prior_split", (5, 3), "8 static"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, dims, match):
    with pytest.raises(ValueError, match=match):
        convert(name, dims=dims)


def test_sizes_are_for_priors_only():
    state = StateDict(golden_cases.state_dict("series"), "", (), 0, ())
    with pytest.raises(ValueError, match="factor_dims is"):
        convert_state_dict(state, "series", factor_dims=(8, 4))


def test_command(tmp_path, capsys):
    np.savez(tmp_path / "prior.npz", **tensors("latent_prior"))
    arguments = [f"--checkpoint={tmp_path / 'prior.npz'}", f"--out={tmp_path / 'run'}"]
    assert command.main([*arguments, "--static_dim=8"]) == 2
    assert "give both" in capsys.readouterr().err
    assert command.main([*arguments, "--static_dim=8", "--dynamic_dim=3"]) == 0
    assert "LatentDiff" in capsys.readouterr().out
    variables, meta = load_for_inference(tmp_path / "run")
    expected = convert("latent_prior").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, variables["params"], expected)
    assert PriorSpec.from_dict(meta["prior"]).length == SIZES["video_length"]
    assert meta["factors"]["static"] == Normalizer().to_dict() and "solver" in meta["sampler"]
    assert command.main([*arguments, "--static_dim=8", "--dynamic_dim=3", "--name=vox1"]) == 2
    assert "holds a prior" in capsys.readouterr().err
