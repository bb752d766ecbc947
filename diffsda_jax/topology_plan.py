"""What a run would be on chips that are not at hand: the training step, compiled for them.

Memory, work and traffic are what the compiler says of the program that would run; times follow
from them and from what the maker says of the chip. Nothing is run, so nothing is measured.
"""

import contextlib
import dataclasses
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffsda_jax import chips, collectives, plan, sharding
from diffsda_jax import config as configuration
from diffsda_jax.chips import GIB, Chip
from diffsda_jax.experiment import Experiment

logger = logging.getLogger(__name__)

ESTIMATE = "an estimate from a compiler and data sheets; nothing was run, so nothing is measured"
UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


@dataclasses.dataclass(frozen=True)
class Step:
    """What the compiler says of a training step, for one chip.

    Attributes:
      chips: how many there are.
      mesh: sizes of its axes.
      batch_size: over all chips.
      state: bytes of weights, average and moments, all parts of the mesh's state together.
      flops: of matrix products and convolutions, with loops in full, as ``plan.flops``.
      seconds: that compiling took.
      fits: False if the compiler found no room for it.
      needed: bytes of memory; if it does not fit, those that the compiler names.
      parts: bytes of arguments, results that reuse none of them, temporaries and program.
      moved: bytes of arguments and results, which are read and written at least once.
      accessed: bytes read and written by all instructions, as the compiler counts them: loops once.
      traffic: by kind of collective, see ``collectives``.
      loops_known: whether all collectives lie in loops whose number of rounds is known.
    """

    chips: int
    mesh: dict[str, int]
    batch_size: int
    state: int
    flops: float
    seconds: float
    fits: bool
    needed: float
    parts: dict[str, float]
    moved: float = 0.0
    accessed: float = 0.0
    traffic: dict[str, collectives.Total] = dataclasses.field(default_factory=dict)
    loops_known: bool = True

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in a step."""
        return sum((total.sent for total in self.traffic.values()), 0.0)


def make_plan(config: ConfigDict, topology: str) -> str:
    """Describes a run on a topology: its training step is compiled for it, without the hardware.

    Args:
      config: from a file of ``configs/``.
      topology: see ``chips.devices_of``.

    Returns:
      A text: config, parameters, data, memory of a chip, FLOPs, traffic between chips, the time
      these imply, and, where the step does not fit, settings with which it does.

    Raises:
      ValueError, FileNotFoundError: as ``plan.make_plan``, and for an unknown topology.
      ImportError: there is no compiler for the topology.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs, so no other device is touched
    devices, chip = chips.devices_of(topology)
    experiment, data = plan.prepare(config)
    step = compile_step(experiment, configuration.make_mesh(config.mesh, devices), chip)
    facts = step_facts(step, chip) | traffic_facts(step)
    if step.fits and chip is not None:
        facts |= estimate_facts(step, chip, config.train.num_steps)
    sections = plan.overview(experiment, data)
    sections[f"one training step on {topology}: {ESTIMATE}"] = plan.format_facts(facts)
    if not step.fits and chip is not None:
        found = remedies(
            config, step, chip, lambda changed: _compile_changed(changed, devices, chip)
        )
        sections["settings with which it fits, each compiled"] = found
    return plan.format_sections(sections)


def compile_step(experiment: Experiment, mesh: Mesh, chip: Chip | None) -> Step:
    """Compiles the training step for the devices of a mesh.

    Raises:
      ValueError: the batch cannot be split over the devices.
    """
    config, count = experiment.config, mesh.devices.size
    steps = config.train.accumulation_steps
    batch_size = config.train.batch_size
    sharding.check_batch_size(batch_size, mesh, accumulation_steps=steps)
    state, traced = plan.traced_step(experiment, mesh)
    known = {
        "chips": count,
        "mesh": dict(mesh.shape),
        "batch_size": batch_size,
        "state": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "flops": plan.flops(traced.jaxpr) / count,
    }
    start = time.monotonic()
    try:
        with nothing_cached():
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.monotonic() - start
        return Step(**known, seconds=seconds, fits=False, needed=needed_bytes(error), parts={})
    return Step(**known, seconds=time.monotonic() - start, **_compiled_facts(compiled, chip))


@contextlib.contextmanager
def nothing_cached() -> Iterator[None]:
    """Keeps no compiled programs: those for chips that are not here could not be read back."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, math.inf)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _compiled_facts(compiled: Any, chip: Chip | None) -> dict[str, Any]:
    """What a compiled program says of memory and traffic, as fields of ``Step``."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    parts = {name: float(size) for name, size in sizes.items()}
    found, needed = collectives.parse(compiled.as_text()), sum(parts.values())
    return {
        "fits": chip is None or needed <= chip.memory,
        "needed": needed,
        "parts": parts,
        "moved": float(memory.argument_size_in_bytes + memory.output_size_in_bytes),
        "accessed": float((cost or {}).get("bytes accessed", 0.0)),
        "traffic": collectives.totals(found),
        "loops_known": all(one.runs_known for one in found),
    }


def needed_bytes(error: Exception) -> float:
    """Bytes that the compiler says it would need, 0 if it does not say."""
    named = re.search(r"\(?(\d+(?:\.\d+)?)([KMGT])\)? (?:exceeds|of) ", str(error))
    return float(named.group(1)) * UNITS[named.group(2)] if named else 0.0


def step_facts(step: Step, chip: Chip | None) -> dict[str, str]:
    """Chips, memory and work."""
    axes = " x ".join(f"{name}={size}" for name, size in step.mesh.items())
    per_chip = step.batch_size / step.chips
    facts = {
        "chips": f"{step.chips}, mesh {axes}",
        "batch": f"{step.batch_size}, {per_chip:g} on a chip",
        "compiled in": f"{step.seconds:.0f} s",
    }
    needed = binary(step.needed) if step.needed else "more"
    of = f" of {binary(chip.memory)}: {'fits' if step.fits else 'DOES NOT FIT'}" if chip else ""
    facts["memory of a chip"] = needed + of
    facts |= {f"  {name}": binary(size) for name, size in step.parts.items()}
    facts["weights, average, moments, whole"] = binary(step.state)
    facts["FLOPs of a chip"] = f"{step.flops / 1e9:,.3f} G"
    if step.fits:
        facts["bytes that its instructions count"] = f"{decimal(step.accessed)}, loops once"
    return facts


def binary(size: int | float) -> str:
    """Bytes in GiB, or MiB below one of them."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def decimal(size: int | float) -> str:
    """Bytes in GB, or MB below one of them; of traffic, whose speeds count in powers of ten."""
    return f"{size / 1e9:.3f} GB" if size >= 1e9 else f"{size / 1e6:.3f} MB"


def short(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def traffic_facts(step: Step) -> dict[str, str]:
    """What goes between chips, a line for each kind of collective."""
    facts = {
        kind: f"payload {decimal(total.payload)} in {total.runs} run(s), a chip sends "
        f"{decimal(total.sent)}"
        for kind, total in step.traffic.items()
    }
    if step.fits:
        sure = "" if step.loops_known else " or more: a loop's number of rounds is not known"
        facts["a chip sends, all kinds"] = f"{decimal(step.sent)}{sure}"
    return facts


def estimate_facts(step: Step, chip: Chip, num_steps: int) -> dict[str, str]:
    """Between which times a step lies, at the chip's full speeds.

    The least is its work, its state through memory once or its traffic, whichever takes longest.
    The most lets every byte that the compiler counts go through memory, though a part of them never
    leaves the chip. Neither is a promise: real kernels reach a part of these speeds.
    """
    least = {
        f"FLOPs at {chip.flops / 1e12:.0f} T/s": step.flops / chip.flops,
        f"state read and written at {chip.memory_speed / 1e9:.0f} GB/s": (
            step.moved / chip.memory_speed
        ),
        f"traffic at {chip.network_speed / 1e9:.0f} GB/s": step.sent / chip.network_speed,
    }
    counted = {"all counted bytes at that speed": step.accessed / chip.memory_speed}
    times = max(least.values()), max((least | counted).values())
    hours = [seconds * num_steps / 3600 for seconds in times]
    facts = {f"  {name}": f"{short(bound * 1e3)} ms" for name, bound in (least | counted).items()}
    return facts | {
        "a step takes": " to ".join(short(seconds * 1e3) for seconds in times) + " ms",
        "steps a second": " to ".join(short(1 / seconds) for seconds in reversed(times)),
        f"{num_steps:,} steps of {step.batch_size} clips": (
            f"{short(hours[0])} to {short(hours[1])} h, {short(hours[0] * step.chips)} to "
            f"{short(hours[1] * step.chips)} chip-hours, without input, saving and evaluation"
        ),
    }


def _compile_changed(config: ConfigDict, devices: Sequence[Any], chip: Chip | None) -> Step:
    """The step of another config."""
    return compile_step(
        plan.prepare(config)[0], configuration.make_mesh(config.mesh, devices), chip
    )


def candidates(config: ConfigDict, step: Step) -> list[tuple[str, list[Any]]]:
    """Options that take memory from a step, each with values from the mildest to the strongest.

    In order of what they cost: splitting the state costs traffic, accumulation nothing but the
    speed of small batches, rematerialisation a third more work, bfloat16 precision, and a smaller
    batch is another training.
    """
    per_chip = step.batch_size // step.chips
    powers = [2**n for n in range(1, 20)]
    micro = config.train.accumulation_steps
    fsdp = step.mesh[sharding.FSDP_AXIS]
    free = config.mesh.data == -1  # else the mesh is as someone wants it
    known = {
        "mesh.fsdp": [n for n in powers if n > fsdp and step.chips % n == 0 and free],
        "train.accumulation_steps": [n for n in powers if n > micro and per_chip % n == 0],
        "model.remat": [True] if not config.model.get("remat", False) else [],
        "model.precision": ["bfloat16"] if config.model.precision != "bfloat16" else [],
        "train.batch_size": [step.batch_size // n for n in powers if per_chip % (n * micro) == 0],
    }
    return [(path, values) for path, values in known.items() if values and _has(config, path)]


def _has(config: ConfigDict, path: str) -> bool:
    """Whether there is such an option."""
    section, option = path.split(".")
    return section in config and option in config[section]


def promising(path: str, value: Any, config: ConfigDict, step: Step, chip: Chip) -> bool:
    """Whether an option may take enough memory: even the best that it can do is compared."""
    needed = step.needed
    if path == "mesh.fsdp":  # of the state, its gradient and its update, all but one part
        needed -= 1.5 * step.state * (1 / step.mesh[sharding.FSDP_AXIS] - 1 / value)
    elif path == "train.accumulation_steps":
        needed *= config.train.accumulation_steps / value
    elif path == "train.batch_size":
        needed *= value / step.batch_size
    else:
        return True
    return needed <= chip.memory


def remedies(
    config: ConfigDict, step: Step, chip: Chip, compile_with: Callable[[ConfigDict], Step]
) -> str:
    """Settings with which a step fits that does not: each by itself, else more and more together.

    Args:
      config: of the step that does not fit.
      step: that step.
      chip: that it does not fit.
      compile_with: gives the step of another config.

    Returns:
      A line for each setting that was compiled: its memory, and whether it fits.
    """
    lines, options = [], candidates(config, step)

    def attempt(settings: dict[str, Any]) -> bool:
        named = " ".join(f"--config.{path}={value}" for path, value in settings.items())
        logger.info("compiling with %s ...", named)
        tried = compile_with(_changed(config, settings))
        needed = binary(tried.needed) if tried.needed else "too much"
        lines.append(f"{'fits' if tried.fits else 'does not':<10}{needed:<12}{named}")
        return tried.fits

    def alone(path: str, values: list[Any]) -> bool:
        hopeful = [value for value in values if promising(path, value, config, step, chip)]
        if not hopeful:
            lines.append(f"{'cannot':<10}{'-':<12}--config.{path}={values[-1]}, by itself")
        return any(attempt({path: value}) for value in hopeful)

    found = [alone(path, values) for path, values in options]
    together: dict[str, Any] = {}
    for path, values in options:
        if any(found):
            break
        together[path] = values[-1]
        if path == "train.batch_size":  # one clip a chip is not split further
            together.pop("train.accumulation_steps", None)
        if len(together) > 1 and attempt(together):
            break
    if not any(line.startswith("fits") for line in lines):
        lines.append("none of these: take a larger slice, a chip with more memory, or less width")
    return "\n".join(lines)


def _changed(config: ConfigDict, settings: dict[str, Any]) -> ConfigDict:
    """A copy with other values."""
    config = config.copy_and_resolve_references()
    for path, value in settings.items():
        section, option = path.split(".")
        config[section][option] = value
    return config
