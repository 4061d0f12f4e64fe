"""The recorder of a forward: each call of torch whose result depends on the images becomes an operation."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, get_testing_overrides
from torch.utils.weak import WeakTensorKeyDictionary

from resnet_core.comparison.imports import INSTALLED
from resnet_core.comparison.operations import Fingerprint, Leaf, Operation, Result, fingerprint, flat, mapped


class Recorder(TorchFunctionMode):
    """Records every call of torch whose result depends on the images."""

    def __init__(
        self, model: nn.Module, exact: bool, fingerprints: bool, record: bool = True, seed: int | None = None
    ) -> None:
        super().__init__()
        self.exact, self.fingerprints, self.record, self.seed = exact, fingerprints, record, seed
        self.operations: list[Operation] = []
        self.casts: list[Operation] = []
        self.stack: list[nn.Module] = []
        self.numbers = WeakTensorKeyDictionary()
        """A tensor that depends on the images -> the operation that wrote it last."""
        self.known = WeakTensorKeyDictionary()
        """A tensor -> its version and fingerprint."""
        self.promoted = WeakTensorKeyDictionary()
        self.sources = WeakTensorKeyDictionary()
        """A tensor that is made from weights, or random -> the weights' names, and how it is made."""
        self.names = {id(value): name for name, value in [*model.named_parameters(), *model.named_buffers()]}
        self.shapes = {name: tuple(value.shape) for name, value in [*model.named_parameters(), *model.named_buffers()]}
        self.parameters = {name for name, _ in model.named_parameters()}
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.used: dict[Any, Leaf] = {}
        self.times: dict[tuple[str, str], int] = {}
        self.channels_last = False
        self.no_grad: tuple[str | None, int | None] | None = None
        """The line that last turned gradients off."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.__deepcopy__:  # its memo is no argument: it holds everything that was copied so far
            return func(*args, **kwargs)
        name = plain_name(func)
        if name == "_set_grad_enabled" and args == (False,):
            self.no_grad = calling_line()
        seed = self.next_seed() if name in RANDOM else None

        if name in ("expand_as", "view_as") and len(args) == 2:  # of the second tensor only the shape counts
            args = (args[0], torch.empty_like(args[1], device="meta"))

        # In float64, what would make float32 of it is left out.
        if self.exact:
            args, kwargs, asked = without_casts(name, args, kwargs)
            args, kwargs = mapped(self.promote, args), mapped(self.promote, kwargs)
            if asked and isinstance(args[0], Tensor) and args[0].is_floating_point():
                self.note_cast(asked, args[0])
                return args[0]
        tensors = [each for each in (*flat(args), *flat(kwargs)) if isinstance(each, Tensor)]
        values = tensors[:1] if name in LIKE else tensors  # what is only made like the images does not depend on them
        depends = self.record and name not in FACTORIES and any(each in self.numbers for each in values)
        if not depends:
            result = mapped(self.widen, func(*args, **kwargs))
            self.note_sources(name, tensors, result)
            return result

        first = next(each for each in tensors if each in self.numbers)
        read, shape = self.of(first), tuple(first.shape)
        stand_ins = mapped(self.stand_in, args), mapped(self.stand_in, kwargs)
        result = mapped(self.widen, func(*args, **kwargs))

        # An operation with several results is one operation for each.
        results = [each for each in flat(result) if isinstance(each, Tensor)]
        for index, each in enumerate(results):
            arguments = by_name(func, *stand_ins)
            if len(results) > 1:
                arguments = {**arguments, "result": index}
            cut = each.is_floating_point() and not each.requires_grad and any(one.requires_grad for one in tensors)
            self.append(name, arguments, (func, *stand_ins), (read, shape), each, cut, seed)
        return result

    def next_seed(self) -> int | None:
        """Seeds the random generator anew for each draw, so that an operation can draw the same numbers by itself."""
        if self.seed is not None:
            self.seed += 1000
            torch.manual_seed(self.seed)
        return self.seed

    def note_sources(self, name: str, tensors: list[Tensor], result: Any) -> None:
        """Remembers which weights a result that does not depend on the images is made from, and how."""
        leaves = [self.leaf(each) for each in tensors]
        names = tuple(dict.fromkeys(name for leaf in leaves for name in leaf.names))
        made = {leaf.made for leaf in leaves}
        results = [each for each in flat(result) if isinstance(each, Tensor)]
        if name in PARTS and [each.numel() for each in results] == [each.numel() for each in tensors[:1]]:
            name = "view"  # an index that only adds axes
        kinds = {"random": RANDOM, "part": PARTS, "": VIEWS | SAME}
        made.add(next((kind for kind, functions in kinds.items() if name in functions), "computed"))
        how = next(each for each in ("random", "computed", "part", "") if each in made)
        for each in results:
            if id(each) not in self.names and (names or how == "random"):
                self.sources[each] = names, how

    def append(
        self, name: str, arguments: dict[str, Any], call: Any, read: Any, result: Tensor, cut: bool, seed: int | None
    ) -> None:
        if name == "batch_norm" and self.stack and getattr(self.stack[-1], "momentum", 0) is None:
            arguments["momentum"] = None  # torch gives its function another number for each batch
        names = [name for leaf in arguments.values() if isinstance(leaf, Leaf) for name in leaf.names]
        path = names[0].rpartition(".")[0] if names else self.innermost()
        off = self.no_grad if cut and name not in SAME else None
        file, line = off or calling_line()
        time = self.times.get((path, name), 0)
        self.times[path, name] = time + 1
        self.operations.append(
            Operation(
                number=len(self.operations),
                function=name,
                arguments=arguments,
                call=call,
                path=path,
                file=file,
                line=line,
                read=read[0],
                read_shape=read[1],
                written=self.of(result, fresh=True),
                shape=tuple(result.shape),
                time=time,
                cut=cut,
                seed=seed,
            )
        )
        if result.device.type != "meta" and torch.is_autocast_enabled(result.device.type):
            self.note_cast(f"{NARROW.get(torch.get_autocast_dtype(result.device.type))} by autocast", result)
        self.numbers[result] = len(self.operations) - 1
        if result.dim() == 4 and not result.is_contiguous():
            self.channels_last |= result.is_contiguous(memory_format=torch.channels_last)

    def note_cast(self, asked: str, tensor: Tensor) -> None:
        file, line = calling_line()
        self.casts.append(
            Operation(
                -1,
                asked,
                {},
                (len, (), {}),
                self.innermost(),
                file,
                line,
                None,
                None,
                (),
                tuple(tensor.shape),
                0,
                False,
            )
        )

    def innermost(self) -> str:
        """Path of the innermost running module that the network holds."""
        return next((self.paths[id(each)] for each in reversed(self.stack) if id(each) in self.paths), "")

    def promote(self, value: Any) -> Any:
        """A float32 tensor in float64; the same one each time, as its values may be changed in place."""
        if not is_narrow(value):
            return value
        if value not in self.promoted:
            self.promoted[value] = value.double()
            if id(value) in self.names or isinstance(value, nn.Parameter):
                leaf = self.leaf(value)
                self.used[id(value)] = leaf
                self.sources[self.promoted[value]] = leaf.names or ("",), ""
        return self.promoted[value]

    def widen(self, value: Any) -> Any:
        return value.double() if self.exact and is_narrow(value) and value not in self.numbers else value

    def stand_in(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value in self.numbers:
            return Result(self.numbers[value], tuple(value.shape))
        leaf = self.leaf(value)
        self.used.setdefault(leaf.names or id(value), leaf)
        return leaf

    def leaf(self, value: Tensor) -> Leaf:
        if id(value) in self.names:
            name = self.names[id(value)]
            return Leaf(value, (name,), name in self.parameters, shape=tuple(value.shape))
        names, made = self.sources.get(value, ((), ""))
        loose = isinstance(value, nn.Parameter) or "" in names
        learned = loose or not self.parameters.isdisjoint(names)
        names = tuple(filter(None, names))
        shape = self.shapes[names[0]] if len(names) == 1 and not made else tuple(value.shape)
        return Leaf(value, names, learned, loose, shape, made)

    def of(self, tensor: Tensor, fresh: bool = False) -> Fingerprint | None:
        """The tensor's fingerprint, computed again only when the tensor has changed."""
        if not self.fingerprints or tensor.device.type == "meta":
            return None
        version, known = self.known.get(tensor, (None, None))
        if fresh or known is None or version != tensor._version:
            known = fingerprint(tensor)
            self.known[tensor] = (tensor._version, known)
        return known


def is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float16, torch.bfloat16)


# What torch's functions do, by name: make a tensor, draw numbers, take a part, change the shape, change nothing.
FACTORIES, RANDOM, PARTS, VIEWS, SAME = (
    frozenset(names.split())
    for names in (
        "new new_tensor new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like "
        "rand_like randn_like",
        "rand randn rand_like randn_like randint bernoulli normal uniform "
        "dropout dropout1d dropout2d feature_dropout alpha_dropout feature_alpha_dropout rrelu",
        "__getitem__ chunk split narrow select unbind",
        "view reshape flatten squeeze unsqueeze expand_as unflatten view_as permute transpose t expand",
        "contiguous clone detach to float double type type_as __get__ requires_grad",
    )
)
LIKE = ("to", "type_as", "view_as", "expand_as")
NARROW: dict[Any, str] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    "torch.FloatTensor": "float32",
    "torch.HalfTensor": "float16",
}
CASTS = {"float": "float32", "half": "float16", "bfloat16": "bfloat16"}


def without_casts(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], str]:
    """The arguments without those that ask for less than float64, and what the call itself asks for."""
    asked = [
        NARROW[each] for each in (*args[1:], *kwargs.values()) if isinstance(each, torch.dtype | str) and each in NARROW
    ]
    if name in CASTS or (name in ("to", "type") and asked):
        return args, kwargs, CASTS.get(name) or asked[0]

    def widened(each: Any) -> Any:
        return torch.float64 if isinstance(each, torch.dtype) and each in NARROW else each

    return mapped(widened, args), mapped(widened, kwargs), ""


@cache
def plain_name(func: Callable[..., Any]) -> str:
    """`relu` for `relu_`, `add` for `__iadd__`."""
    name = getattr(func, "__name__", str(func))
    if not name.startswith("__"):
        return name.rstrip("_")
    plain = name.strip("_").removeprefix("i")
    return OPERATORS.get(plain, name)


OPERATORS = {name: name for name in ("add", "sub", "mul", "div", "pow", "matmul", "gt", "ge", "lt", "le")}
OPERATORS |= {"radd": "add", "rmul": "mul", "truediv": "div"}


@cache
def argument_names(func: Callable[..., Any]) -> tuple[str, ...]:
    """Names of a function's arguments; torch lists those of its own functions, most of which have no signature."""
    try:
        return tuple(inspect.signature(get_testing_overrides().get(func, func)).parameters)
    except (ValueError, TypeError):
        return "input", "other"


def by_name(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = argument_names(func)
    named = {names[n] if n < len(names) else str(n): value for n, value in enumerate(args)}
    return {**named, **kwargs}


TORCH = f"{Path(torch.__file__).parent}/"
HERE = f"{Path(__file__).parent}/"


def calling_line() -> tuple[str | None, int | None]:
    """The innermost line, outside torch and this folder, that the call comes from: not a library's where it can be."""
    of_library: tuple[str | None, int | None] = None, None
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(HERE) and frame.f_code.co_name == "trace":
            break
        if not file.startswith((TORCH, HERE, "<eval_with_key>")):
            if not file.startswith(INSTALLED):
                return file, frame.f_lineno
            of_library = of_library if of_library[0] else (file, frame.f_lineno)
        frame = frame.f_back
    return of_library
