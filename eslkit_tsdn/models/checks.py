"""What the networks refuse: numbers of channels that cannot be, images that cannot be halved."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from eslkit.errors import InputError

__all__ = ["check_channels", "check_counts", "check_size"]

_KINDS = {"basis": "basis vectors"}


def check_channels(widths: Sequence[int], **named: int) -> None:
    """Refuse what cannot be a network, before torch builds half of it.

    Args:
        widths: channels of every level, the innermost last.
        **named: other numbers of channels, blocks or levels, by the argument's name.

    Raises:
        InputError: fewer than two widths, or a number below 1.
    """
    if len(widths) < 2:
        raise InputError(
            f"widths={tuple(widths)} has {len(widths)} level(s), but a U-Net needs at least two: "
            "one around the pooling and the middle. Pass for example widths=(16, 32)."
        )
    check_counts(**{f"widths[{i}]": width for i, width in enumerate(widths)}, **named)


def check_counts(**named: int) -> None:
    """Refuse a number below 1.

    Args:
        **named: numbers of channels, blocks or levels, by the argument's name.

    Raises:
        InputError: a number below 1.
    """
    for name, value in named.items():
        if value < 1:
            kind = "channels" if "width" in name or "channels" in name else _KINDS.get(name, name)
            raise InputError(f"{name}={value}: a number of {kind} must be 1 or more.")


def check_size(x: Tensor, *, factor: int) -> None:
    """Refuse an image that `factor` does not divide, and say what to pad it to.

    Args:
        x: (batch, planes, height, width).
        factor: what height and width must be multiples of.

    Raises:
        InputError: height or width is no multiple.
    """
    height, width = x.shape[-2:]
    if height % factor or width % factor:
        padded = (-(-height // factor) * factor, -(-width // factor) * factor)
        raise InputError(
            f"The input is {height}x{width}, but this network halves its input until both sides "
            f"must be multiples of {factor}. Pad it to {padded[0]}x{padded[1]} (for example with "
            "torch.nn.functional.pad(x, ..., mode='reflect')) and crop the output."
        )
