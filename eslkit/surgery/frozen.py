"""What is not trained: fixed filters, a mean colour that is subtracted, a frozen encoder."""

from __future__ import annotations

from torch import nn

from eslkit.graph.channels import ChannelGraph

__all__ = ["fixed_parameters", "without_fixed"]


def fixed_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that are not trained, beside others that are.

    `module.requires_grad = False`, which sets an attribute and freezes nothing, is meant so. Where
    nothing at all is trained, the model was only made ready for use, and nothing counts as fixed.
    """
    parameters = dict(model.named_parameters())
    fixed = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    for path, module in model.named_modules():
        if vars(module).get("requires_grad") is False:
            fixed |= {name for name, _ in module.named_parameters(prefix=path)}
    return frozenset(fixed & parameters.keys() if parameters.keys() - fixed else ())


def without_fixed(
    model: nn.Module, graph: ChannelGraph, widths: dict[str, int]
) -> tuple[dict[str, int], dict[str, str]]:
    """Widths without those of groups that only fixed parameters make.

    Args:
        model: the model.
        graph: its channel graph.
        widths: group -> width that is wanted.

    Returns:
        The widths that are left, and the groups that keep theirs with the reason.
    """
    fixed = fixed_parameters(model)
    named = {name for name, _ in model.named_parameters()}
    kept: dict[str, str] = {}
    for name in widths if fixed else ():
        group = graph.group(name)
        makers = {s.parameter for s in group.spans if s.role == "producer"} & named
        if makers and makers <= fixed:
            for member in (name, *group.tied):
                kept[member] = "what makes its channels is not trained"
    return {name: new for name, new in widths.items() if name not in kept}, kept
