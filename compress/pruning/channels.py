"""Groups of channels that can only go together, found by Torch-Pruning's dependency graph, and what they cost.

A *group* is one set of channels: every module that makes them, normalises them or reads them. Residual connections
tie the outputs of several convolutions into one group. Torch-Pruning 1.6 is asked for two things only, which modules
belong together and physical removal; importances, ranking and rounding are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from compress.errors import MissingCapabilityError, ModelError, RunError

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PreTrainedModel

INSTALL = 'pip install "mcompress[vision]"'


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that go together.

    Attributes:
        root: module path of a convolution or linear that makes them; names the group.
        width: how many there are.
        outputs: paths of the modules whose output channels they are (BatchNorm included).
        inputs: path of each convolution or linear that reads them -> input features per channel (1, or height *
            width after a flatten).
    """

    root: str
    width: int
    outputs: tuple[str, ...]
    inputs: Mapping[str, int]


def missing_torch_pruning() -> tuple[str, ...]:
    """Return the sentence for ``Plan.missing`` where Torch-Pruning is not installed. Does not import it."""
    return () if find_spec("torch_pruning") else (f"torch-pruning is not installed: {INSTALL}",)


def channel_groups(model: PreTrainedModel) -> list[ChannelGroup]:
    """Return the groups of a convolutional network; the model is not changed.

    The output of the last linear, the head, is in none of them.

    Raises:
        ModelError: the network has a part that cannot be pruned safely: grouped convolutions other than
            depthwise ones, concatenated channels, or weights outside convolutions, linears and BatchNorms.
        MissingCapabilityError: Torch-Pruning is not installed.
    """
    _refuse_other_parts(model)
    graph = _dependencies(model)
    names = {module: name for name, module in model.named_modules()}
    kinds = _kinds()
    groups = []
    for found in graph.get_all_groups(ignored_layers=[_head(model)], root_module_types=list(kinds[:2])):
        width, outputs, inputs = len(found[0].idxs), [], {}
        for dependency, indices in found:
            module = dependency.target.module
            if not isinstance(module, kinds):
                continue
            if graph.is_out_channel_pruning_fn(dependency.handler) or _depthwise(module):
                outputs.append(names[module])
                _check_indices(names[module], indices, width, 1)
            else:
                inputs[names[module]] = len(indices) // width
                _check_indices(names[module], indices, width, len(indices) // width)
        groups.append(ChannelGroup(names[found[0].dep.target.module], width, tuple(sorted(set(outputs))), inputs))
    return sorted(groups, key=lambda group: group.root)


def remove_channels(model: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> None:
    """Keep some channels of each group and physically remove the rest, in place.

    Args:
        model: the network.
        kept: group's root -> positions to keep, ascending, at least one.

    Raises:
        RunError: Torch-Pruning did not make the widths that were asked for.
    """
    import torch_pruning
    from torch.nn import Linear

    groups = {group.root: group for group in channel_groups(model)}
    graph = _dependencies(model)
    for root, positions in kept.items():
        gone = sorted(set(range(groups[root].width)) - set(positions))
        if gone:
            module = model.get_submodule(root)
            linear = isinstance(module, Linear)
            cut = torch_pruning.prune_linear_out_channels if linear else torch_pruning.prune_conv_out_channels
            graph.get_pruning_group(module, cut, gone).prune()
    widths = {root: len(positions) for root, positions in kept.items()}
    found = {group.root: group.width for group in channel_groups(model)}
    wrong = [root for root in widths if found.get(root) != widths[root]]
    if wrong:
        raise RunError(
            "Torch-Pruning did not remove the channels that were asked for.",
            value=f"{wrong[0]}: {found.get(wrong[0])} channels, wanted {widths[wrong[0]]}",
            fix="Use the version in constraints.txt; if it still fails, report it with the model's config.json.",
        )


@contextmanager
def masked_channels(
    model: PreTrainedModel, groups: Sequence[ChannelGroup], masks: Sequence[torch.Tensor]
) -> Iterator[None]:
    """Multiply channels by masks wherever they are read: a mask of 0 acts exactly as removal does.

    Args:
        model: the network.
        groups: the groups.
        masks: for each group (batch, width) or (1, width), float.
    """
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(_scale(mask, repeats))
        for group, mask in zip(groups, masks, strict=True)
        for name, repeats in group.inputs.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def group_macs(model: PreTrainedModel, groups: Sequence[ChannelGroup], widths: Sequence[int]) -> int:
    """Return the multiply-accumulates of one image when the groups have these widths.

    Each convolution and linear costs ``positions * kernel * out * in``; its ``out`` and ``in`` follow the groups.
    """
    return MacsTable(model, groups).total(widths)


class MacsTable:
    """Multiply-accumulates as a function of the groups' widths: one trace, then arithmetic.

    Args:
        model: the network, with the widths that the groups say.
        groups: its groups.
    """

    def __init__(self, model: PreTrainedModel, groups: Sequence[ChannelGroup]) -> None:
        from compress.models.image_macs import positions

        made = {name: i for i, group in enumerate(groups) for name in group.outputs}
        read = {name: (i, repeats) for i, group in enumerate(groups) for name, repeats in group.inputs.items()}
        self._terms: list[tuple[int, int | None, int | None]] = []
        for name, times in positions(model).items():
            module = model.get_submodule(name)
            factor = times * module.weight.numel()
            maker, (reader, _) = made.get(name), read.get(name, (None, 1))
            if maker is not None:
                factor //= groups[maker].width
            if reader is not None:
                factor //= groups[reader].width
            self._terms.append((factor, maker, reader))

    def total(self, widths: Sequence[int]) -> int:
        """Return the multiply-accumulates of one image at these widths."""
        return sum(
            factor * (1 if maker is None else widths[maker]) * (1 if reader is None else widths[reader])
            for factor, maker, reader in self._terms
        )


def _dependencies(model: PreTrainedModel) -> Any:
    """Trace the network once and return Torch-Pruning's graph of it."""
    import torch

    from compress.models.image_macs import empty_images

    try:
        import torch_pruning
    except ImportError as error:
        raise MissingCapabilityError(
            "Pruning a convolutional network needs Torch-Pruning, which is not installed.",
            value="torch-pruning",
            fix=f"Install it: {INSTALL}.",
        ) from error
    learning = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True).eval()
    try:
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(
                model,
                example_inputs={"pixel_values": empty_images(model)},
                forward_fn=lambda network, inputs: network(**inputs).logits,
            )
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learning[name])


def _kinds() -> tuple[type[Module], ...]:
    from torch.nn import BatchNorm2d, Conv2d, Linear

    return Conv2d, Linear, BatchNorm2d


def _depthwise(module: Any) -> bool:
    return getattr(module, "groups", 1) > 1


def _head(model: PreTrainedModel) -> Module:
    """Return the last linear: the one that makes the logits."""
    from torch.nn import Linear

    return [module for module in model.modules() if isinstance(module, Linear)][-1]


def _refuse_other_parts(model: PreTrainedModel) -> None:
    kinds = _kinds()
    for name, module in model.named_modules():
        own = [*module.parameters(recurse=False)]
        groups = getattr(module, "groups", 1)
        if own and not isinstance(module, kinds):
            raise _unsupported(f"{name} ({type(module).__name__}) has weights of its own")
        if groups > 1 and not groups == module.in_channels == module.out_channels:
            raise _unsupported(f"{name} is a convolution in {groups} groups")


def _check_indices(name: str, indices: Sequence[int], width: int, repeats: int) -> None:
    if list(indices) != list(range(width * repeats)):
        raise _unsupported(f"{name} concatenates or splits channels")


def _unsupported(what: str) -> ModelError:
    return ModelError(
        "The channels of this network cannot be pruned safely.",
        value=what,
        fix="Networks of plain and depthwise convolutions, linears and BatchNorms can be pruned (ResNet, "
        "MobileNet); leave `prune` out for others.",
    )


def _scale(mask: torch.Tensor, repeats: int) -> Any:
    spread = mask.repeat_interleave(repeats, dim=1)

    def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        shaped = spread.reshape(*spread.shape, *(1,) * (inputs[0].dim() - 2))
        return (inputs[0] * shaped, *inputs[1:])

    return hook
