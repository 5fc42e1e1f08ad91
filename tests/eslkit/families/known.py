"""Laws that a family is known to break, and why: every one is a promise to mend it."""

from __future__ import annotations

__all__ = ["BROKEN", "KNOWN"]

_BROKEN: dict[str, tuple[str, str]] = {
    "blur": (
        "found halved",
        "a filter repeated for every channel in the forward pass has an axis of free size",
    ),
    "efficient-channels": (
        "found halved",
        "a convolution along the channels protects them",
    ),
    "involution": (
        "found halved undone untouched used",
        "channels viewed in groups beside a kernel that is predicted for each",
    ),
    "local-response-norm": (
        "found halved",
        "pooling along the channels protects them",
    ),
    "lstm-projected": (
        "halved masked undone untouched",
        "the size of the projection (proj_size) is not brought along",
    ),
    "product": (
        "found",
        "the axis of a weight in a product is said to read and make the same channels",
    ),
    "repeated": (
        "found halved",
        "channels repeated as a whole and one by one, side by side",
    ),
    "sliced-writes": (
        "found halved undone untouched used",
        "a tensor of zeros written into counts as channels of its own",
    ),
    "spectral-norm-old": (
        "found halved identity masked preserve undone untouched used",
        "the tensor that it leaves on the layer has another rank while copied",
    ),
    "wavelet": (
        "found halved",
        "a transposed grouped convolution that gathers several channels into one a group",
    ),
    "waves-made": (
        "found halved undone untouched used",
        "a view that nothing uses picks a channel, and protects it",
    ),
}
"""Family -> laws, reason."""

KNOWN = {(law, name): reason for name, (laws, reason) in _BROKEN.items() for law in laws.split()}

BROKEN = frozenset(_BROKEN) | {"gru", "rnn"}  # these two only with a single image
"""Families that are not drawn in networks of several."""
