"""Defaults of the sections of a config that only one mode reads, and of the mesh."""

from typing import Any

from diffsda_jax.prior_spec import PriorSpec


def mesh_defaults() -> dict[str, Any]:
    """Of the devices, see `sharding.make_mesh` and `sharding.state_sharding`."""
    return {
        "data": -1,  # groups of devices that each hold the whole state; -1 = the rest
        "fsdp": 1,  # devices that share the state between them; -1 = the rest
        # (regular expression of a path, spec), the first that matches: "largest" splits the largest
        # axis, (None, "fsdp") the second, () none. Without one, large arrays are split.
        "rules": (),
    }


def first_stage_training_defaults() -> dict[str, Any]:
    """Of ``--mode=first_stage``, see `first_stage_runs`; the rest is `train` and `optimizer`."""
    return {
        # The autoencoder, see `first_stage.FirstStageSpec`; one that first_stage.checkpoint names
        # brings its own sizes. These are the published VQ f8.
        "kind": "vq",  # vq | kl
        "channels": 128,
        "channel_mults": (1, 2, 2, 4),
        "num_res_blocks": 2,
        "attention_levels": (3,),
        "embed_dim": 4,
        "codebook_size": 256,  # vq
        # The loss, see `train.first_stage_step.FirstStageLoss`.
        "l2_weight": 0.0,
        "perceptual": "",  # module:function or file.py:function, a distance for each pair of frames
        "perceptual_weight": 1.0,
        "commitment_weight": 0.25,  # vq
        "kl_weight": 1e-6,  # kl
        "discriminator_weight": 0.0,  # 0 = none; published: 0.5 to 0.8
        "discriminator_start_step": 10_000,
        "discriminator_channels": 64,
        "discriminator_layers": 3,
    }


def latents_defaults() -> dict[str, Any]:
    """Of ``--mode=latents``."""
    return {
        "folder": "",  # of the records; empty = WORKDIR/latents
        "batch_frames": 64,  # over all devices
        "num_workers": 4,  # that decode clips
        "clips_per_shard": 512,  # what a kill may lose
    }


def sampling_defaults() -> dict[str, Any]:
    """Of ``--mode=sampling``, see `sampling_runs`."""
    return {
        "solvers": ("heun", "euler", "dpmpp_2m", "unipc"),  # see diffusion.samplers.SOLVERS
        "evaluations": (6, 8, 10, 12, 16, 24),  # of the network, for one sample
        "sigma_min": (0.0, 0.03, 0.05),  # last level above zero; 0 = model.sigma_min
        "eta": (0.0,),  # shares of noise, of the solvers that can add it
        "tolerance_percent": 2.0,  # of the result with 63 evaluations of Heun
        "num_clips": 64,  # to swap and to reconstruct, of each half of eval.split
    }


def explore_defaults() -> dict[str, Any]:
    """Of ``--mode=explore``, see `explore_runs`."""
    return {
        "codes_from": "auto",  # auto (the prior if there is one) | prior | data
        "num_codes": 32_768,  # that components are fitted to
        "decomposition": "pca",  # pca | ica | varimax | module:Class, like scikit-learn's
        "dynamic_over": "step",  # step (each d) | sequence (all d of a sequence as one vector)
        "num_components": 6,
        "num_clips": 3,  # to be seen moved
        "num_alphas": 7,  # columns of the pictures, odd
        "alpha": 0.0,  # of the last column; 0 = two standard deviations of each component
        "num_traversals": 16,  # clips that are moved to measure what changes
        "num_random": 8,  # directions that are moved for the level of chance
        "num_refits": 4,  # disjoint parts of the codes, whose components are compared
        "other_workdirs": (),  # of models with other seeds, for components to be compared
    }


def report_defaults() -> dict[str, Any]:
    """Of ``--mode=report``, see `report_runs`."""
    return {
        "compute": "auto",  # auto (decode examples with the newest checkpoint) | never
        "num_codes": 256,  # sequences of each split to be encoded at most
        "num_clips": 24,  # to swap and to reconstruct, of which the first and the worst are shown
        "num_components": 3,  # of each factor, with a slider each
        "num_places": 7,  # of a slider, odd
        "max_megabytes": 24.0,  # of the page
    }


def prior_defaults() -> dict[str, Any]:
    """Of ``--mode=prior``, see `prior_runs`."""
    return {
        # The prior, see `prior_spec.PriorSpec`.
        "form": "joint",  # joint | reference (the released flat MLP) | independent
        "width": PriorSpec.width,  # of a token; 0 = that of the widest factor, at least 128
        "num_layers": PriorSpec.num_layers,
        "num_heads": PriorSpec.num_heads,
        "dropout": PriorSpec.dropout,
        # Its training; checkpoints, reports and what is kept are as in train.
        "batch_size": 64,  # over all devices
        "accumulation_steps": 1,  # parts of a batch, one after another: for less memory
        "num_steps": 5_000,
        "eval_every_steps": 0,  # 0 = only at the end
        "schedule": "cosine",  # cosine (with warm-up) | constant
        "learning_rate": 1e-3,
        "warmup_steps": 100,  # at most a tenth of the run
        "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "ema_half_life_examples": 44_000.0,  # a decay of 0.999 a step; 0 = no averaging
        # Its sampler (joint).
        "solver": "heun",
        "sample_steps": 32,
        # The factors that it is trained on.
        "windows_per_item": 1,  # of items longer than data.length
        "encode_batch_size": 64,  # over all devices
        "sequences_per_shard": 4_096,  # what a kill may lose
    }


def distill_defaults() -> dict[str, Any]:
    """Of ``--mode=distill``, see `distill_runs`."""
    return {
        "evaluations": 1,  # of the network for a sample of the distilled model, unless told
        # The loss, see `train.distill_step.DistillOptions`.
        "path_steps": 16,  # of the teacher, from noise to data
        "horizon": 0,  # steps of the path up to the target; 1 = consistency distillation, 0 = all
        "draws": 4,  # states of each path that are learnt from
        "start_share": 0.25,  # of them that are its start
        "swap_share": 0.5,  # of sequences that get the d of another one
        # Its training; checkpoints, reports and what is kept are as in train.
        "batch_size": 16,  # over all devices
        "accumulation_steps": 1,  # parts of a batch, one after another: for less memory
        "num_steps": 2_000,
        "eval_every_steps": 0,  # 0 = only at the end
        "schedule": "cosine",  # cosine (with warm-up) | constant
        "learning_rate": 1e-3,
        "warmup_steps": 100,  # at most a tenth of the run
        "weight_decay": 1e-5,
        "clip_norm": 1.0,
        "ema_half_life_examples": 1_000.0,  # 0 = no averaging
    }
