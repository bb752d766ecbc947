"""Seeded changes of configs and of files, such as people, disks and transfers make."""

import random
from pathlib import Path

from ml_collections import ConfigDict

# Words that a command line may hold where a number, a name or a list belongs.
_WORDS = ("", "abc", "None", "nan", "inf", "-1", "0", "1", "1.5", "-0.5", "1e300", "1e-300", "True")
_MORE_WORDS = ("()", "(1,2)", "(0,)", "('a',)", "[", "{}", "70000", "-70000", "ü", "../x")


def list_options(config: ConfigDict, prefix: str = "") -> list[str]:
    """Every option of a config by its dotted name."""
    found = []
    for key in config:
        value = config.get(key)
        name = f"{prefix}{key}"
        found += list_options(value, f"{name}.") if isinstance(value, ConfigDict) else [name]
    return found


def mutate_config(config: ConfigDict, number: int, seed: int = 0) -> tuple[str, str]:
    """An option and the word that it is set to; the first numbers reach every option once.

    Args:
      config: has the options.
      number: of the mutation.
      seed: of all mutations.
    """
    names = list_options(config)
    random.Random(seed).shuffle(names)
    generator = random.Random(f"{seed} {number}")
    return names[number % len(names)], generator.choice(_WORDS + _MORE_WORDS)


def damage(path: Path, generator: random.Random) -> str:
    """Damages a file in one of several ways; says which."""
    data = path.read_bytes()
    way = generator.choice(("truncated", "flipped", "many flipped", "empty", "zeroed", "doubled"))
    if way == "truncated":
        data = data[: generator.randrange(len(data))]
    elif way in ("flipped", "many flipped"):
        changed = bytearray(data)
        for _ in range(1 if way == "flipped" else 1 + len(data) // 100):
            changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        data = bytes(changed)
    elif way == "empty":
        data = b""
    elif way == "zeroed":  # a block that a disk lost
        first = generator.randrange(len(data))
        size = min(512, len(data) - first)
        data = data[:first] + bytes(size) + data[first + size :]
    else:
        data = data + data
    path.write_bytes(data)
    return way
