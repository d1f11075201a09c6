"""The parts of a model of transformers, found from its structure, and their names in a trace."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Block(NamedTuple):
    """A block of a stack.

    children: the modules that the block calls directly. attentions: those of them that contain
    attention, in order, with the name of the residual stream after each of them. mlp: the module
    whose output is the update of the MLP, if it is known.
    """

    name: str  # such as "encoder.blocks.3"
    module: nn.Module
    children: list[nn.Module]
    attentions: dict[nn.Module, str]
    mlp: nn.Module | None


class Stack(NamedTuple):
    """A list of blocks, and the module that owns the list."""

    prefix: str  # "" or such as "encoder."
    owner: nn.Module
    blocks: list[Block]


class Attention(NamedTuple):
    """A module that calls attention. projection: the output projection, if it is outside."""

    name: str  # such as "blocks.3.attention"
    module: nn.Module
    projection: nn.Module | None


class Structure(NamedTuple):
    """The stacks and the attentions of a model."""

    stacks: list[Stack]
    attentions: list[Attention]


def structure(model: nn.Module) -> Structure:
    """Find the blocks of a model: the elements of the outermost ModuleLists with attention."""
    modules = dict(model.named_modules())
    calls = [path for path, module in modules.items() if _calls_attention(module)]
    lists = dict.fromkeys(home for path in calls if (home := _home(path, modules)))
    prefixes = dict(zip(lists, _prefixes(list(lists)), strict=True))
    has_two_sequences = bool(getattr(model.config, "is_encoder_decoder", False)) or bool(
        getattr(model.config, "add_cross_attention", False)
    )
    attentions = [_attention(path, calls, prefixes, modules, has_two_sequences) for path in calls]
    stacks = []
    for home, prefix in prefixes.items():
        blocks = [
            _block(f"{prefix}blocks.{index}", module, has_two_sequences)
            for index, module in enumerate(modules[home].children())
        ]
        stacks.append(Stack(prefix, modules[home.rpartition(".")[0]], blocks))
    return Structure(stacks, attentions)


def _is_attention(module: nn.Module) -> bool:
    # transformers itself relies on the name (PreTrainedModel._can_set_attn_implementation); with
    # grouped heads its functions read the attribute.
    return "Attention" in type(module).__name__ or hasattr(module, "num_key_value_groups")


def _contains_attention(module: nn.Module) -> bool:
    return any(map(_is_attention, module.modules()))


def _calls_attention(module: nn.Module) -> bool:
    """Whether the module is an innermost attention."""
    return _is_attention(module) and not any(map(_contains_attention, module.children()))


def _home(path: str, modules: dict[str, nn.Module]) -> str | None:
    """The path of the outermost ModuleList that contains this module."""
    parts = path.split(".")
    for end in range(1, len(parts)):
        home = ".".join(parts[:end])
        if isinstance(modules[home], nn.ModuleList):
            return home
    return None


def _prefixes(homes: list[str]) -> list[str]:
    """The shortest distinct prefixes of names for several lists: "encoder.", "decoder."."""
    if len(homes) == 1:
        return [""]
    parts = [home.split(".") for home in homes]
    while len(parts) > 1 and len({part[0] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[1:] for part in parts]
    owners = [part[:-1] for part in parts]
    if len({tuple(owner) for owner in owners}) == len(owners):
        parts = owners
    return ["".join(f"{name}." for name in part) for part in parts]


def _attention(
    path: str,
    calls: list[str],
    prefixes: dict[str, str],
    modules: dict[str, nn.Module],
    has_two_sequences: bool,
) -> Attention:
    home = _home(path, modules)
    if home is None:
        return Attention(path, modules[path], None)
    index, _, inside = path.removeprefix(home + ".").partition(".")
    in_block = [other for other in calls if other.startswith(f"{home}.{index}.")]
    if len(in_block) == 1:
        kind = "self_attention" if has_two_sequences else "attention"
    elif len(in_block) == 2 and has_two_sequences:
        kind = "self_attention" if path == in_block[0] else "cross_attention"
    else:
        kind = inside
    name = f"{prefixes[home]}blocks.{index}.{kind}"
    return Attention(name, modules[path], _outside_projection(path, modules))


def _outside_projection(path: str, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The only matrix next to an attention inside an outer attention, as in BERT."""
    outer = modules[path.rpartition(".")[0]]
    if not _is_attention(outer):
        return None
    inside = set(modules[path].modules())
    matrices = [module for module in outer.modules() if _matrices(module, inside) == 1]
    leaves = [module for module in matrices if not any(True for _ in module.children())]
    return leaves[0] if len(leaves) == 1 else None


def _matrices(module: nn.Module, except_for: set[nn.Module] = frozenset()) -> int:  # type: ignore[assignment]
    return sum(
        parameter.ndim >= 2
        for part in module.modules()
        if part not in except_for
        for parameter in part.parameters(recurse=False)
    )


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: it has parameters, but only vectors, or is called a norm."""
    parameters = [*module.parameters()]
    if not parameters:
        return "Norm" in type(module).__name__
    return all(parameter.ndim < 2 for parameter in parameters)


def _called(module: nn.Module) -> list[nn.Module]:
    """The children of a module, with the elements of lists instead of the lists."""
    children = []
    for child in module.children():
        children += _called(child) if isinstance(child, nn.ModuleList) else [child]
    return children


def _block(name: str, module: nn.Module, has_two_sequences: bool) -> Block:
    children = _called(module)
    attending = [child for child in children if _contains_attention(child)]
    labels = {1: ["after_attention"]}
    if has_two_sequences:
        labels[2] = ["after_self_attention", "after_cross_attention"]
    attentions = dict(zip(attending, labels.get(len(attending), []), strict=False))
    mlp = _mlp(module) if attending else None
    return Block(name, module, children, attentions, mlp)


def _mlp(module: nn.Module) -> nn.Module | None:
    """The module whose output is what an MLP adds to the residual stream; None if unclear.

    Of the children without attention that have matrices there must be one, the MLP, or two, of
    which the first is one matrix (up and down). A child that includes a norm is searched again.
    """
    children = [x for x in _called(module) if _matrices(x) and not _contains_attention(x)]
    if len(children) not in (1, 2) or (len(children) == 2 and _matrices(children[0]) != 1):
        return None
    last = children[-1]
    return _mlp(last) if any(map(is_norm, last.modules())) else last
