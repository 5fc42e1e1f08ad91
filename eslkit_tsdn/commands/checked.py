"""What was asked for on a command line, as checked values; what is wrong with it in a sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from eslkit.errors import InputError

__all__ = ["checked", "one_of"]

Form = TypeVar("Form", bound=BaseModel)


def checked(form: type[Form], values: Mapping[str, Any]) -> Form:
    """Settings of a form.

    Args:
        form: a pydantic model.
        values: its fields by name.

    Raises:
        InputError: one cannot be used.
    """
    try:
        return form(**values)
    except ValidationError as error:
        problems = "; ".join(_told(problem) for problem in error.errors())
        raise InputError(f"A setting cannot be used: {problems}.") from error


def one_of(option: str, word: Any, words: Collection[str]) -> Any:
    """The word, where it is one of those that are known, or None.

    Args:
        option: what it was passed as.
        word: what was passed; None for nothing.
        words: what is known.

    Raises:
        InputError: it is none of them.
    """
    if word is not None and word not in words:
        raise InputError(f"{option} {word}: expected one of {', '.join(words)}.")
    return word


def _told(problem: Mapping[str, Any]) -> str:
    """One problem that pydantic found."""
    place = ".".join(map(str, problem["loc"]))
    if not place:
        return str(problem["ctx"]["error"])
    return f"{place}: {problem['msg']}, got {problem['input']!r}"
