"""The check of an option that takes one of a few values."""

from collections.abc import Sequence


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuses a value that is not among the allowed ones.

    Raises:
      ValueError: with the name, the value and what is allowed.
    """
    if value not in allowed:
        raise ValueError(
            f"{name}: unknown value {value!r}; allowed are {', '.join(allowed)}; choose one of "
            f"these."
        )
