"""What the texts of the command line mean: models, shapes, tables, steps."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from eslkit.errors import InputError

__all__ = ["load_model", "parse_shape", "parse_share", "parse_step", "parse_table"]

T = TypeVar("T")


def load_model(name: str) -> nn.Module:
    """The model that `package.module:factory` names.

    Raises:
        InputError: it cannot be imported, does not exist, or gives no torch.nn.Module.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(
            f"{name!r} names no model; expected package.module:factory, such as my_models:UNet."
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does when imported
        raise InputError(
            f"{module_name} cannot be imported from {Path.cwd()} "
            f"({type(error).__name__}: {error}). Install it, or start where it lies."
        ) from error
    try:
        made: Any = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise InputError(f"{module_name} has no {attribute!r}; look at its spelling.") from error
    if callable(made) and not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:  # whatever the user's factory does
            raise InputError(
                f"{name} could not be called without arguments ({type(error).__name__}: {error}). "
                "Name a function that makes the model by itself."
            ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{name} gives a {type(made).__name__}, expected a torch.nn.Module.")
    return made


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape that `1,4,64,64` writes.

    Raises:
        InputError: it is no list of positive whole numbers.
    """
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(
            f"--input {text!r} is no shape; expected positive whole numbers as in 1,4,64,64."
        )
    return shape


def parse_table(
    texts: Sequence[str], *, option: str, kind: Callable[[str], T], plain: bool = True
) -> T | dict[str, T]:
    """The number that `2` writes, or the table that `NAME=2` and further ones write.

    Args:
        texts: what was passed, once for each use of the option.
        option: the option's name, for errors.
        kind: reads a number, as int and float do.
        plain: whether one number for all will do.

    Raises:
        InputError: a text is neither, or a number stands beside other texts.
    """
    table: dict[str, T] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            value = kind(number)
        except ValueError:
            value = None
        alone = not equals and (len(texts) > 1 or not plain)
        if value is None or (equals and not name) or alone:
            wanted = "a number, or NAME=NUMBER" if plain else "NAME=NUMBER"
            raise InputError(f"{option} {text!r}: expected {wanted}, once for each name.")
        if not equals:
            return value
        table[name] = value
    return table


def parse_share(text: str) -> float | str:
    """A weight such as `3`, or a percentage such as `70%`, which stays text.

    Raises:
        ValueError: it is neither.
    """
    if text.endswith("%"):
        float(text[:-1])
        return text
    return float(text)


def parse_step(text: str) -> str | list[str] | dict[str, int | float]:
    """A step of one's own: `enter,down` (names) or `enter=12,down=0.75` (widths, multipliers).

    Raises:
        InputError: names and widths are mixed, or a width is no number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any("=" in part for part in parts):
        return parts[0] if len(parts) == 1 else parts
    table: dict[str, int | float] = {}
    for part in parts:
        name, _, number = part.rpartition("=")
        try:
            table[name] = float(number) if "." in number else int(number)
        except ValueError:
            name = ""
        if not name:
            raise InputError(
                f"--step {text!r}: expected names (enter,down), or a width or multiplier for each "
                "(enter=12,down=0.75)."
            )
    return table
