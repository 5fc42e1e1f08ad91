"""Channels kept by the size of their own weights: L1, L2, the scale of their norm."""

from __future__ import annotations

import torch
from torch import Tensor

from eslkit.errors import InputError
from eslkit.graph.channels import ChannelSpan
from eslkit.surgery.policies.change import GroupChange, Maps, keep_largest

__all__ = ["bn_scale", "l1", "l2", "norm_scores"]


def l1(change: GroupChange) -> Maps:
    """The channels whose filters have the largest L1 norm (Li et al., ICLR 2017).

    A group that several layers produce (a residual sum) is scored by all of them together.
    """
    return keep_largest(norm_scores(change, 1), change)


def l2(change: GroupChange) -> Maps:
    """The channels whose filters have the largest L2 norm, over all layers that produce them."""
    return keep_largest(norm_scores(change, 2), change)


def bn_scale(change: GroupChange) -> Maps:
    """The channels with the largest |scale| of their batch norms (Liu et al., ICCV 2017).

    Several batch norms over one group add up. A group without batch norm is scored as by `l1`.
    """
    scales = [span for span in change.spans("follows") if _is_scale(change, span)]
    if not scales:
        return l1(change)
    return keep_largest(sum_over(change, scales, 1), change)


def norm_scores(change: GroupChange, order: int) -> Tensor:
    """The norm of each channel's filters in all layers that produce it, shape (old,).

    Args:
        change: what was asked.
        order: 1 for the sum of magnitudes, 2 for the root of the sum of squares.

    Raises:
        InputError: another order.
    """
    if order not in (1, 2):
        raise InputError(f"order={order!r} of a norm must be 1 or 2")
    # Embeddings and bare parameters carry channels that no layer produces.
    spans = change.spans("producer") or change.spans("follows") or change.spans("consumer")
    total = sum_over(change, spans, order)
    return total.sqrt() if order == 2 else total


def sum_over(
    change: GroupChange, spans: list[ChannelSpan] | tuple[ChannelSpan, ...], order: int
) -> Tensor:
    """Sum of |weight|^order of each channel over spans, float64."""
    total = torch.zeros(change.old, dtype=torch.float64)
    for span in spans:
        rows = change.channels(span).abs().to("cpu", torch.float64)
        total += rows.pow(order).sum(dim=1)
    return total


def _is_scale(change: GroupChange, span: ChannelSpan) -> bool:
    """A batch norm is what keeps a running variance; its scale is its `weight`."""
    at = f"{span.layer}." if span.layer else ""
    return span.parameter == f"{at}weight" and f"{at}running_var" in change.tensors
