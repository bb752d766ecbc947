import pytest

from diffsda_jax.first_stage.spec import PUBLISHED, FirstStageSpec


@pytest.mark.parametrize("name", PUBLISHED)
def test_descriptions_come_back(name):
    spec = PUBLISHED[name]
    assert FirstStageSpec.from_dict(spec.to_dict()) == spec
    assert f"f{spec.factor}" == name.partition("-")[2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "vae"}, "first_stage.kind is 'vae'; allowed: 'vq', 'kl'"),
        ({"channels": 12}, "first_stage.channels is 12; GroupNorm needs a multiple of 8"),
        ({"num_res_blocks": 0}, "first_stage.num_res_blocks is 0; it must be at least 1"),
        ({"channel_mults": ()}, r"first_stage.channel_mults is \(\)"),
        ({"attention_levels": (4,)}, "names level 4; there are levels 0 to 3"),
        ({"codebook_size": 5}, "codebook_size is 5 for kind 'kl'"),
        ({"kind": "vq"}, "codebook_size is 0 for kind 'vq'; it must be at least 1"),
    ],
)
def test_values_that_are_not_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        FirstStageSpec(**{"kind": "kl"} | fields)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"kind": "kl", "width": 3}, "width is unknown; known fields: kind, ch"), ({}, "kind is mis")],
)
def test_dictionaries_that_do_not_fit(values, message):
    with pytest.raises(ValueError, match=message):
        FirstStageSpec.from_dict(values)
