"""Two networks, private copies of those given, in which each operation with weights has its counterpart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resnet_core.comparison.networks import with_place
from resnet_core.comparison.operations import IMAGES, Leaf, Operation, Trace
from resnet_core.comparison.recorder import VIEWS
from resnet_core.comparison.trace import copied, perturb_constants, place_of_logits, trace

Network = nn.Module | Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two networks as they start, in evaluation mode, and which weights of one stand for which of the other."""

    a: nn.Module
    b: nn.Module
    inputs: Tensor
    labels: Tensor
    generators: tuple[Tensor, Tensor] | None
    """The random generator's state after building each; None unless both were built by functions."""
    operations: dict[Weights, Weights]
    """The first network's operations, by the names of their weights -> the second's."""
    tensor_names: dict[str, str]
    """The first network's parameters and buffers -> those of the second."""
    orders: dict[str, tuple[int, ...]]
    """The first network's weights that are kept transposed -> their dimensions in the order of the second's."""
    renamed: dict[str, str]
    """The first network's modules -> the second's, where names differ."""
    unmatched: list[str]
    """Operations of either network without counterpart, in words."""
    only_heads_differ: bool
    """Whether the last linear layers are all that has no counterpart, and have other numbers of outputs."""
    unused: list[str]
    """Modules with weights that never run."""
    casts: tuple[Operation, ...]
    """Where the networks ask for float32 or less."""
    channels_last: bool
    """Whether the first network computes with its channels last in memory, where torch rounds differently."""

    @property
    def comparable(self) -> bool:
        return not self.unmatched


def match(a: Network, b: Network, inputs: Tensor) -> Pair:
    """Builds or copies both networks, runs each once on the inputs and finds which weights correspond.

    Raises TypeError for anything that is not a network, and RuntimeError for one that does not run on these inputs.
    """
    inputs = inputs.float().clone()
    first, first_generator, _ = private_copy("first", a, inputs)
    second, second_generator, logits = private_copy("second", b, inputs)
    both_built = not isinstance(a, nn.Module) and not isinstance(b, nn.Module)

    models = (first, second)
    runs = [trace(perturb_constants(copied(model)), inputs) for model in models]
    ours, theirs = (first_runs(run.operations) for run in runs)
    for which, found in (("first", ours), ("second", theirs)):
        if not found:
            raise RuntimeError(
                f"no layer of the {which} network reads the images: torch loses them on the way, as it does where a "
                "forward goes through numpy or .data; keep them tensors"
            )
    pairs, biases, unmatched = align(*(run.operations for run in runs))
    names = tensor_names(pairs, first, second) | biases
    lost = [each for each in (*ours, *theirs) if each not in {one for pair in pairs for one in pair}]

    return Pair(
        a=first,
        b=second,
        inputs=inputs,
        labels=torch.arange(len(inputs), device=inputs.device) % logits.shape[-1],
        generators=(first_generator, second_generator) if both_built else None,
        operations={weights_of(one): weights_of(other) for one, other in pairs},
        tensor_names=names,
        orders=orders_of(pairs, first, second),
        renamed={one.path: other.path for one, other in pairs if one.path != other.path},
        unmatched=unmatched,
        only_heads_differ={*lost} == {ours[-1], theirs[-1]}
        and all(each.function == "linear" for each in lost)
        and ours[-1].shape != theirs[-1].shape,
        unused=[path for model, run in zip(models, runs, strict=True) for path in unused_modules(model, run)],
        casts=tuple(cast for run in runs for cast in run.casts),
        channels_last=runs[0].channels_last,
    )


def built(network: Network) -> nn.Module:
    """The network, as a function builds it after `torch.manual_seed(0)`, without torch.compile's wrapper."""
    torch.manual_seed(0)
    model = network() if callable(network) and not isinstance(network, nn.Module) else network
    if not isinstance(model, nn.Module):
        images = "; give images as inputs=" if isinstance(model, Tensor) else ""
        raise TypeError(f"compare takes networks or functions that build them, got a {type(model).__name__}{images}")
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def private_copy(which: str, network: Network, inputs: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """A private copy of the network in eval mode, the random generator's state after building it, and its logits.

    Raises TypeError for anything that is not a network of images, or that returns anything but a tensor of logits;
    RuntimeError for a network that does not run on these inputs.
    """
    model = built(network)
    generator = torch.get_rng_state()
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"its {path} is" if path else "it is"
            raise TypeError(f"the {which} network cannot be looked into: {what} a TorchScript program; give its source")
    if not any(is_lazy(each) for each in (*model.parameters(), *model.buffers())):
        model = copied(model)  # also what a function returns, which may be somebody's network
    model = model.to(inputs.device).float().eval()

    try:
        with torch.no_grad():
            output = model(inputs.clone())
    except Exception as error:  # whatever somebody's forward raises
        shape = " x ".join(map(str, inputs.shape))
        raise RuntimeError(f"the {which} network does not run on images of {shape}: {with_place(error)}") from error
    if not isinstance(output, Tensor):
        place, _ = place_of_logits(output)
        raise TypeError(
            f"{type(model).__name__} returns a {type(output).__name__}, not a tensor; wrap it in a module that "
            f"returns the logits{'' if place is None else f', network(x)[{place!r}]'}"
        )
    if not output.numel():
        raise RuntimeError(
            f"the {which} network returns no numbers, but a tensor of shape {list(output.shape)}; give its head at "
            "least one class"
        )
    return model, generator, output


Weights = tuple[str, ...]


def weights_of(operation: Operation) -> Weights:
    """Names of the parameters and buffers that an operation uses; its place where the network does not hold them."""
    return tuple(operation.tensors.values()) or (operation.place,)


def held(operation: Operation) -> dict[str, Leaf]:
    """The weights of an operation, with its buffers; a norm's statistics count as weights, other buffers do not."""
    leaves = {role: leaf for role, leaf in operation.leaves.items() if leaf.names or leaf.unregistered}
    has_weights = "norm" in operation.function or any(leaf.learned for leaf in leaves.values())
    return leaves if has_weights else {}


def first_runs(operations: Iterable[Operation]) -> list[Operation]:
    """The first operation with each set of weights."""
    first: dict[Weights, Operation] = {}
    for operation in operations:
        if held(operation):
            first.setdefault(weights_of(operation), operation)
    return [*first.values()]


def align(
    all_ours: Sequence[Operation], all_theirs: Sequence[Operation]
) -> tuple[list[tuple[Operation, Operation]], dict[str, str], list[str]]:
    """Our operations with weights beside theirs, biases added by hand, and what has no counterpart, in words.

    Convolutions and linear layers are matched in the order in which they run, by their weights' shapes and by whether
    they share their input with another: a projection does, a block's later convolutions do not. A matrix is matched
    with a kernel of as many rows and numbers. What follows one of them, a norm, is matched with what follows its
    counterpart.
    """
    ours, theirs = first_runs(all_ours), first_runs(all_theirs)
    pairs: dict[Operation, Operation] = {}
    taken: set[Operation] = set()

    # Convolutions and linear layers: first those that share their input alike, then any of the same shape.
    for exact, form in ((True, weight_shape), (False, weight_shape), (False, as_matrix)):
        for one in (one for one in ours if is_weighted(one) and one not in pairs):
            for other in theirs:
                if other in taken or not is_weighted(other) or form(other) != form(one):
                    continue
                if not exact or branches(one, ours) == branches(other, theirs):
                    pairs[one] = other
                    taken.add(other)
                    break

    # Norms: first those that follow counterparts, then any of the same shapes.
    for by_source in (True, False):
        for one in (one for one in ours if one not in pairs):
            for other in theirs:
                if other in taken or shapes(other) != shapes(one):
                    continue
                source, their_source = source_of(one, all_ours), source_of(other, all_theirs)
                if not by_source or (source is not None and pairs.get(source) is their_source):
                    pairs[one] = other
                    taken.add(other)
                    break

    added = added_biases(all_ours, pairs), added_biases(all_theirs, {other: one for one, other in pairs.items()})
    biases = {one.tensors[role]: name for one, (role, name) in added[0].items()}
    biases |= {name: other.tensors[role] for other, (role, name) in added[1].items()}
    unmatched = [f"the first's {in_words(one)}" for one in ours if one not in pairs and one not in added[0]]
    unmatched += [f"the second's {in_words(other)}" for other in theirs if other not in taken and other not in added[1]]
    unregistered = [one for one in (*ours, *theirs) if any(leaf.unregistered for leaf in held(one).values())]
    unmatched += [f"{in_words(each)} that no module of the network holds" for each in unregistered if each in pairs]
    return [*pairs.items()], biases, unmatched


def added_biases(
    operations: Sequence[Operation], counterparts: Mapping[Operation, Operation]
) -> dict[Operation, tuple[str, str]]:
    """Each addition that gives a layer its bias -> the role of what it adds, and the name of the counterpart's bias."""
    found = {}
    for each in first_runs(operations):
        source = source_of(each, operations) if each.function == "add" and len(each.tensors) == 1 else None
        if source is None or source not in counterparts or "bias" in source.leaves:
            continue
        bias = counterparts[source].leaves.get("bias")
        if bias and bias.names:
            ((role, leaf),) = held(each).items()
            if leaf.value.numel() == bias.value.numel():
                found[each] = role, bias.names[0]
    return found


def shapes(operation: Operation) -> list[tuple[int, ...]]:
    """Of its weights; of those that only have other dimensions first, as they are used, with the outputs first."""
    used = {role: as_used(operation, role) for role in held(operation)}
    return [
        tuple(used[role].shape) if used[role].dim() == len(leaf.shape) else leaf.shape
        for role, leaf in held(operation).items()
    ]


def as_used(operation: Operation, role: str) -> Tensor:
    """A weight as the operation uses it; a matrix with its outputs first, on whichever side of a product it stands."""
    value = operation.leaves[role].value
    if value.dim() != 2 or operation.function not in ("matmul", "mm", "addmm", "einsum"):
        return value
    terms, _, result = str(operation.arguments.get("equation", "")).replace(" ", "").partition("->")
    if not result:
        return value.t() if role in ("other", "mat2") else value
    term = terms.split(",")[[*operation.arguments].index(role) - 1]
    return value.t() if term[-1] in result else value


def is_weighted(operation: Operation) -> bool:
    return len(weight_shape(operation)) > 1


def weight_shape(operation: Operation) -> tuple[int, ...]:
    """The shape of the largest of its tensors: a convolution's or linear layer's weight."""
    return max(shapes(operation), key=lambda shape: (len(shape), math.prod(shape)), default=())


def as_matrix(operation: Operation) -> tuple[int, int]:
    """How many rows its weight has, and how many numbers are in each."""
    rows, *rest = weight_shape(operation)
    return rows, math.prod(rest)


def roles(operation: Operation) -> dict[str, str]:
    """What the operation's parameters and buffers are to it, whatever its function calls its weight -> their names."""
    weight = max(operation.leaves, key=lambda role: len(operation.leaves[role].shape)) if is_weighted(operation) else ""
    return {"weight" if role == weight else role: name for role, name in operation.tensors.items()}


def branches(operation: Operation, operations: Sequence[Operation]) -> bool:
    """Whether another convolution or linear layer reads the same tensor."""
    others = (each for each in operations if each is not operation and is_weighted(each))
    return any(other.read == operation.read for other in others)


def source_of(operation: Operation, operations: Sequence[Operation]) -> Operation | None:
    """The operation with weights whose result this one reads, as it is or in another shape."""
    while len(operation.inputs) == 1 and operation.inputs[0] != IMAGES:
        operation = operations[operation.inputs[0]]
        if is_weighted(operation):
            return operation
        if operation.function not in RESHAPES and operation.read != operation.written:
            return None
    return None


RESHAPES = VIEWS | {"fold"}


KINDS = {"conv2d": "Conv2d", "batch_norm": "BatchNorm2d", "linear": "Linear", "group_norm": "GroupNorm"}


def in_words(operation: Operation) -> str:
    """`layer1.0.conv1 (Conv2d weight [64, 3, 7, 7])`."""
    tensors = " ".join(f"{role} {list(leaf.value.shape)}" for role, leaf in held(operation).items())
    return f"{operation.where} ({KINDS.get(operation.function, operation.function)} {tensors})"


def tensor_names(pairs: Iterable[tuple[Operation, Operation]], first: nn.Module, second: nn.Module) -> dict[str, str]:
    """The first network's parameters and buffers -> the second's: those of an operation's same argument."""
    names: dict[str, str] = {}
    for one, other in pairs:
        ours, theirs = roles(one), roles(other)
        found = {ours[role]: theirs[role] for role in ours if role in theirs}
        names |= found

        # What no operation reads in evaluation, such as a norm's count of batches.
        owners = {key.rpartition(".")[0]: value.rpartition(".")[0] for key, value in found.items()}
        for path, counterpart in owners.items():
            mine, others = (
                {name for name, _ in (*each.named_parameters(recurse=False), *each.named_buffers(recurse=False))}
                for each in (first.get_submodule(path), second.get_submodule(counterpart))
            )
            for name in mine & others:
                names.setdefault(join(path, name), join(counterpart, name))
    return names


def orders_of(
    pairs: Iterable[tuple[Operation, Operation]], first: nn.Module, second: nn.Module
) -> dict[str, tuple[int, ...]]:
    """The first network's weights whose dimensions have another order than the second's -> that of the second."""
    found: dict[str, tuple[int, ...]] = {}
    weights, their_weights = dict(first.named_parameters()), dict(second.named_parameters())
    for one, other in pairs:
        (name, ours), (_, theirs) = order_of(one, weights), order_of(other, their_weights)
        if len(ours) == len(theirs):
            ours = tuple(ours[theirs.index(number)] for number in range(len(theirs)))
        if ours != tuple(sorted(ours)):
            found[name] = ours
    return found


def order_of(operation: Operation, weights: Mapping[str, Tensor]) -> tuple[str, tuple[int, ...]]:
    """The name of an operation's weight, and the order of that weight's dimensions where it is used."""
    role = max(held(operation), key=lambda role: len(operation.leaves[role].shape))
    name = next(iter(operation.leaves[role].names), "")
    if name not in weights:
        return name, ()
    weight, used = weights[name], as_used(operation, role)
    orders = permutations(range(weight.dim()))
    fitting = [each for each in orders if weight.permute(each).shape == used.shape] or [(*range(weight.dim()),)]
    return name, next((each for each in fitting if torch.equal(weight.permute(each).to(used), used)), fitting[0])


def in_order(weight: Tensor, order: Sequence[int] | None, like: Tensor) -> Tensor:
    """A weight of the first network, or its gradient, in the form of its counterpart in the second."""
    if order is not None and len(order) == weight.dim():
        weight = weight.permute(*order)
    return weight.reshape(like.shape) if weight.numel() == like.numel() else weight


def unused_modules(model: nn.Module, run: Trace) -> list[str]:
    """Paths of the modules that hold weights of which no operation reads one."""
    used = {name for leaf in run.leaves for name in leaf.names}
    unused = []
    for path, module in model.named_modules():
        own = {join(path, name) for name, _ in module.named_parameters(recurse=False)}
        if own and not own & used:
            unused.append(path)
    return unused


@torch.no_grad()
def copy_weights(pair: Pair) -> None:
    """Copies the first network's tensors into their counterparts in the second, where these have as many numbers."""
    values, theirs = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (pair.a, pair.b))
    for name, counterpart in pair.tensor_names.items():
        if name in values and counterpart in theirs and theirs[counterpart].numel() == values[name].numel():
            theirs[counterpart].copy_(in_order(values[name], pair.orders.get(name), theirs[counterpart]))


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
