"""What a compiled program sends between chips, read from the text of its HLO.

Convention. The *payload* of a collective is the whole array that it is about, in bytes: what is
summed for an all-reduce, the gathered result of an all-gather, the operand of a reduce-scatter or
an all-to-all, what is sent for a permutation. What a chip *sends* (and receives as much) is what
the ring algorithms send, over groups of n chips: 2 (n-1)/n of the payload for an all-reduce,
(n-1)/n for all-gather, reduce-scatter and all-to-all, and all of it for a permutation or a
broadcast. Groups of one chip send nothing. The same program runs on every chip, so that these are
bytes per chip. A collective in a loop counts as often as the loop runs, and of the branches of a
condition the one that sends most.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
SHARE_KINDS = {"all-gather": 1, "reduce-scatter": 1, "all-to-all": 1, "all-reduce": 2}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_NUM_PARTITIONS = re.compile(r"\bnum_partitions=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A place in the program where chips exchange data.

    Attributes:
      kind: one of ``KINDS``.
      shapes: of the payload, as HLO writes them, such as ``f32[512,12]``.
      payload: of one run, in bytes.
      group_size: n chips that exchange with each other.
      runs: how often it runs in a step.
      runs_known: False if it lies in a loop whose number of rounds is not known, taken for 1.
      channel: of one that the compiler for TPUs spreads over several instructions, so that other
        work goes on meanwhile; empty for all others.
    """

    kind: str
    shapes: tuple[str, ...]
    payload: float
    group_size: int
    runs: int = 1
    runs_known: bool = True
    channel: str = ""

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in a step, see the top of the file."""
        n = self.group_size
        if n == 1:
            return 0.0
        share = SHARE_KINDS[self.kind] * (n - 1) / n if self.kind in SHARE_KINDS else 1.0
        return self.runs * share * self.payload


@dataclasses.dataclass(frozen=True)
class Total:
    """Collectives of a kind, together: places in the program, runs and bytes per chip and step."""

    places: int
    runs: int
    payload: float
    sent: float


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """A line of HLO: name, text of the result's type, operation, and all that follows it."""

    name: str
    type: str
    op: str
    rest: str

    def operands(self) -> list[str]:
        """Names of the arguments."""
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])

    def value(self) -> int | None:
        """That of an integer constant, None of all else."""
        number = re.match(r"(\d+)\)", self.rest)
        return int(number.group(1)) if self.op == "constant" and number else None


def parse(text: str) -> list[Collective]:
    """The collectives that the program's entry reaches.

    Args:
      text: of ``jax.stages.Compiled.as_text()``.

    Returns:
      Each place once, with how often it runs.

    Raises:
      ValueError: the text holds no entry computation, so it is no HLO.
    """
    computations, entry = _computations(text)
    if not entry:
        raise ValueError("the text has no ENTRY computation; give that of a compiled program.")
    partitions = _NUM_PARTITIONS.search(text)
    found = _reached(entry, computations, int(partitions.group(1)) if partitions else 1)
    spread: dict[str, Collective] = {}  # of what is spread, where it starts: that runs least often
    for one in sorted(found, key=lambda one: -one.runs):
        spread[one.channel] = one
    return [one for one in found if not one.channel or spread[one.channel] is one]


def totals(collectives: Sequence[Collective]) -> dict[str, Total]:
    """Sums by kind, in the order of ``KINDS``; kinds that do not occur are left out."""
    found = {}
    for kind in KINDS:
        if some := [one for one in collectives if one.kind == kind]:
            found[kind] = Total(
                places=len(some),
                runs=sum(one.runs for one in some),
                payload=sum(one.runs * one.payload for one in some),
                sent=sum(one.sent for one in some),
            )
    return found


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of every computation by its name, and the name of the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
        elif instruction := _INSTRUCTION.match(line):
            lines.append(_Instruction(*instruction.groups()))
    return computations, entry


def _reached(
    name: str, computations: dict[str, list[_Instruction]], partitions: int
) -> list[Collective]:
    """The collectives of a computation and of those that it calls, for one run of it."""
    found = []
    for line in computations.get(name, []):
        kind = line.op.removesuffix("-start")
        if kind == "ragged-all-to-all":
            kind = "all-to-all"
        if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # how the compiler for TPUs writes one down
        if kind in KINDS:
            found.append(_collective(kind, line, partitions))
        if line.op.startswith("async-") and line.op != "async-start":
            continue  # the later halves of what async-start calls
        branches = [_reached(one, computations, partitions) for one in _branches(line)]
        if branches:
            found += max(branches, key=lambda some: sum(one.sent for one in some))
        rounds, known = (1, True) if line.op != "while" else _rounds(line, computations)
        for attribute, called in _CALLED.findall(line.rest):
            if attribute in ("calls", "body") or line.op == "call":
                for one in _reached(called, computations, partitions):
                    runs, sure = one.runs * rounds, one.runs_known and known
                    found.append(dataclasses.replace(one, runs=runs, runs_known=sure))
    return found


def _branches(line: _Instruction) -> list[str]:
    """The computations of which a condition runs one."""
    if line.op != "conditional":
        return []
    if listed := re.search(r"branch_computations=\{([^}]*)\}", line.rest):
        return [name.strip().lstrip("%") for name in listed.group(1).split(",")]
    return [name for kind, name in _CALLED.findall(line.rest) if kind.endswith("_computation")]


def _rounds(line: _Instruction, computations: dict[str, list[_Instruction]]) -> tuple[int, bool]:
    """How often a loop runs, and whether that is known.

    The compiler for CPUs and GPUs writes it down. That for TPUs does not: then the loop is taken to
    count up from 0, as those of ``lax.scan`` do, to the constant of its condition, by the constant
    that its body adds.
    """
    if noted := re.search(r'"?known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)', line.rest):
        return int(noted.group(1)), True
    called = dict(re.findall(r"\b(condition|body)=%?([\w.\-]+)", line.rest))
    condition = {one.name: one for one in computations.get(called.get("condition", ""), [])}
    compare = next((one for one in condition.values() if one.op == "compare"), None)
    if compare is None or "direction=LT" not in compare.rest:
        return 1, False
    counter, end = (condition.get(name) for name in compare.operands()[:2])
    place = re.search(r"\bindex=(\d+)", counter.rest) if counter else None
    last = end.value() if end else None
    if place is None or last is None:
        return 1, False
    step = _added(computations.get(called.get("body", ""), []), int(place.group(1)))
    return (-(-last // step), True) if step else (1, False)


def _added(body: list[_Instruction], place: int) -> int | None:
    """The constant that a loop's body adds to one of its values; None if it does something else."""
    lines = {one.name: one for one in body}
    results = body[-1].operands() if body else []  # HLO ends with what a computation returns
    result = lines.get(results[place]) if place < len(results) else None
    if result is None or result.op != "add":
        return None
    terms = [lines[name].value() for name in result.operands() if name in lines]
    return next((term for term in terms if term), None)


def _collective(kind: str, line: _Instruction, partitions: int) -> Collective:
    """What a line of HLO exchanges."""
    group_size = _group_size(line.rest, partitions)
    shapes, times = _split(line.type), 1
    if line.op.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # the result is (operands, results, ...), single or as tuples
        shapes = _split(shapes[1])
    if line.op == "reduce-scatter":
        times = group_size  # of the result, which is a part of the operand
    arrays = [array for shape in shapes for array in _SHAPE.findall(shape)]
    payload = sum(_bytes(dtype, bits, dims) for dtype, bits, dims in arrays)
    names = tuple(f"{dtype}{bits}[{dims}]" for dtype, bits, dims in arrays)
    channel = re.search(r"channel_id=(\d+).*async_collective_fusion_config", line.rest)
    return Collective(
        kind, names, times * payload, group_size, channel=channel.group(1) if channel else ""
    )


def _split(text: str) -> list[str]:
    """The elements of a tuple type, without layouts; a type that is no tuple is its only one."""
    text = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", text).strip()
    if not text.startswith("("):
        return [text]
    parts, depth = [""], 0
    for letter in text[1:-1]:
        depth += letter in "(["
        depth -= letter in ")]"
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _bytes(dtype: str, bits: str, dims: str) -> float:
    """Size of an array; ``token`` and the like have none."""
    width = {"pred": 8, "token": 0, "opaque": 0}.get(dtype, int(bits or 0))
    return width / 8 * math.prod(int(size.lstrip("<=")) for size in dims.split(",") if size)


def _group_size(rest: str, partitions: int) -> int:
    """Chips in a replica group; of unequal groups the largest, without any all chips."""
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(iota.group(2))
    if meshed := re.search(r"replica_groups=mesh\[(.*?)\] *\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", meshed.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", meshed.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return max(group.count(",") + 1 for group in listed.group(1).split("},"))
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        ends = [pair.strip("{} ").split(",") for pair in pairs.group(1).split("},")]
        return 2 if any(a.strip() != b.strip() for a, b in ends) else 1
    return partitions
