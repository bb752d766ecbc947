"""The check of an option that takes one of a few values."""

from collections.abc import Sequence


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless a value is among the allowed ones."""
    if value not in allowed:
        raise ValueError(
            f"{name}: unknown value {value!r}; allowed are {', '.join(allowed)}; choose one of "
            f"these."
        )
