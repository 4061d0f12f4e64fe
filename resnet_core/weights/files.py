"""Weights in files: read without executing code or trusting a claimed size, written whole or not at all.

safetensors is the format that is written. `containers` reads it and the others, recognised by their content.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from resnet_core.foundation.atomic import replacing
from resnet_core.foundation.errors import shortened
from resnet_core.weights.arguments import as_options
from resnet_core.weights.containers import read_container, recognise
from resnet_core.weights.header import DIGEST, DTYPES, WeightsError, check_header, digest, read_header
from resnet_core.weights.identify import FoundNetwork
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.inspect import Inspection, inspect_container, named_tensors, patterns_of

logger = logging.getLogger("resnet_core")
PICKLES = (".pt", ".pth", ".th", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLES)
USUAL_KEYS = ("", "state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel, of torch.compile


@dataclass(frozen=True)
class LoadReport:
    """How many tensors were loaded, and which names were left out.

    `dropped` are the file's head where the model keeps its own, `missing` the model's names that the file lacks,
    `unexpected` the file's names that the model lacks.
    """

    loaded: int
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        left_out = {"head left out": self.dropped, "missing": self.missing, "unexpected": self.unexpected}
        return "; ".join(
            [f"{self.loaded} loaded", *(f"{word}: {shortened(names)}" for word, names in left_out.items() if names)]
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was taken from a file of weights."""

    tensors: dict[str, Tensor]
    """Under our names where they are of one of our networks, else under the file's."""
    raw: dict[str, Tensor]
    """The same tensors and those beside them, under the file's names."""
    network: FoundNetwork | None
    """What the shapes and names say; None for weights of a network that this package does not have."""
    inspection: Inspection
    """What is in the file."""


def read_weights(
    path: str | Path, *, key: str | None = None, prefix: str | None = None, ignore: Sequence[str] = (),
    allow_pickle: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Tensors by name, on the CPU, from a file or a folder of weights, whatever its ending.

    A ResNet's come under our names, whatever library wrote them and wherever they lie in the file. Where it holds
    several networks, `key` or `prefix` chooses one as `inspect_weights` shows them. Names that match a pattern of
    `ignore` are left out. Nothing in the file is executed; `allow_pickle` is accepted for older scripts and has no
    effect. A file of `write_weights` is verified against its SHA-256. Raises WeightsError.
    """
    return read_file(path, key=key, prefix=prefix, ignore=ignore).tensors


def read_info(path: str | Path) -> WeightsInfo | None:
    """What a safetensors file says about itself, from its header and unverified; None if it says nothing.

    Files of other formats say nothing. Raises WeightsError.
    """
    path = Path(path)
    if recognise(path) != "safetensors":
        return None
    return WeightsInfo.from_metadata(read_header(path)[1], str(path))


def read_file(
    path: str | Path, *, key: str | None = None, prefix: str | None = None, ignore: Sequence[str] = ()
) -> Found:
    """One reading of a file, as `read_weights` describes it. Raises WeightsError."""
    container = read_container(path)
    inspection = inspect_container(container, ignore=ignore)
    if inspection.holds_int8:
        raise WeightsError(inspection.holds_int8)

    # A network of this package, under our names.
    if inspection.networks:
        network, note = inspection.choose(key=key, prefix=prefix)
        if note:
            warnings.warn(note, stacklevel=2)
        raw = plain(next(found for place, found in named_tensors(container) if place == network.key))
        return Found(tensors=network.tensors, raw=raw, network=network, inspection=inspection)

    # Another network's weights: those that are chosen, the one dict of tensors, or the one in its usual place.
    found = list(named_tensors(container))
    if not found and container.content != {}:
        held = container.content if isinstance(container.content, dict) else [type(container.content).__name__]
        raise WeightsError(
            f"{path} holds other things than named tensors: {shortened([str(each) for each in held])}; save "
            "model.state_dict(), with torch.save or, better, write_weights"
        )
    keys = [place for place, _ in found] or [""]
    usual = [place for place in keys if place in USUAL_KEYS]
    candidates = [key] if key is not None else usual if len(usual) == 1 else keys
    if len(candidates) > 1 or candidates[0] not in keys:
        choices = " or ".join(f"key={place!r}" for place in keys[:3])
        raise WeightsError(
            f"{path} holds {len(found)} dicts of tensors, and none is a ResNet's of this package: choose one with "
            f"{choices}. {inspection.nearest}"
        )
    start = prefix or ""
    named = dict(found).get(candidates[0], {})
    raw = plain({str(name).removeprefix(start): value for name, value in named.items() if str(name).startswith(start)})
    return Found(tensors=raw, raw=raw, network=None, inspection=inspection)


def plain(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The dense tensors with names, without the prefixes of wrappers."""
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and is_plain(value)}
    return without_wrappers(tensors)


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], info: WeightsInfo | None = None) -> None:
    """Writes tensors, bit for bit, and what is known about them as a safetensors file with a SHA-256 of both.

    A crash leaves the old file or the new one. Tensors that share memory are written once per name.
    Raises WeightsError for what the format cannot hold, OSError where the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} must end in .safetensors to be written as weights")
    unfit = [name for name, value in tensors.items() if not is_plain(value) or value.dtype not in DTYPES.values()]
    if unfit:
        raise WeightsError(f"{path} cannot hold {shortened(unfit)}: give dense tensors of {', '.join(DTYPES)}")

    metadata = info.to_metadata() if info else {"format": "pt"}
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    data = in_order(save(copies, {**metadata, DIGEST: digest(copies, metadata)}))
    check_header(data[8 : 8 + int.from_bytes(data[:8], "little")], len(data), path)  # as a reader will
    with replacing(path) as aside:
        aside.write_bytes(data)


def in_order(data: bytes) -> bytes:
    """The same file with its metadata sorted, since the library writes it in any order: one content, one file."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, strict: bool = True, new_head: bool = False,
    key: str | None = None, prefix: str | None = None, ignore: Sequence[str] = (), allow_pickle: bool = False,
) -> LoadReport:  # fmt: skip
    """Copies weights into the model from a file or from tensors by name, and reports what was copied.

    A file is read as `read_weights` reads it, with the same `key`, `prefix` and `ignore`. Floating tensors of any width
    become the model's; `module.` before every name is put on or taken off as the model has it. `new_head` keeps the
    model's own head and leaves out the file's, for another number of classes or for a file without a classifier.
    `strict` demands all names and no others, but for `num_batches_tracked`, which old files lack and which then stays
    as it is. Raises WeightsError, and leaves the model as it was, for wrong names, shapes or kinds, for values that are
    not finite, and where not one name is the model's.
    """
    if not (isinstance(model, nn.Module) and isinstance(weights, str | os.PathLike | Mapping)):
        raise TypeError(
            "load_weights takes a network and then a file or tensors by name, got "
            f"{type(model).__name__} and {type(weights).__name__}"
        )
    source = "the weights" if isinstance(weights, Mapping) else str(weights)
    if isinstance(weights, Mapping):
        matched, report = match_weights(model, weights, source, strict=strict, new_head=new_head)
    else:
        found = read_file(weights, key=key, prefix=prefix, ignore=ignore)
        matched, report = match_file(model, found, source, strict=strict, new_head=new_head)
    model.load_state_dict(matched, strict=False)
    if report.dropped:
        logger.warning("%s: the model keeps its own head; %s left out", source, shortened(report.dropped))
    return report


def match_file(
    model: nn.Module, found: Found, source: str, *, strict: bool = True, new_head: bool = False
) -> tuple[dict[str, Tensor], LoadReport]:
    """`match_weights` with a file's tensors, under our names or, where those are the model's, under its own."""
    network = found.network
    own = without_wrappers(dict(model.state_dict()))
    body = {name for name in own if not name.startswith("fc.")}
    if network is None or len(body & found.raw.keys()) > len(body & found.tensors.keys()):
        return match_weights(model, found.raw, source, strict=strict, new_head=new_head)

    if not (network.has_head or new_head) and "fc.weight" in own:
        options = " ".join(["", *as_options(found.inspection.needed(network))])
        raise WeightsError(
            f"{source} has no classifier ({network.head.removeprefix('none: ')}): load_weights(..., new_head=True) "
            f"loads the body and keeps the model's own head, `{found.inspection.command(network)}` trains one, and "
            f"`resnet-core embed {shlex.quote(source)} IMAGE --out NAME.npy{options}` needs none"
        )
    if strict and not new_head:
        check_unknown(network, source)
    matched, report = match_weights(model, found.tensors, source, strict=strict, new_head=new_head)
    return matched, replace(report, unexpected=tuple(sorted({*report.unexpected, *network.left_out})))


def check_unknown(network: FoundNetwork, source: str) -> None:
    """Raises WeightsError, with what leaves them out, for tensors that may be a part of a classifying network."""
    if network.has_head and network.unknown:
        ignore = patterns_of(network)
        options = " ".join(as_options({"ignore": ignore}))
        second, first = network.second_head(), network.heads[0]
        instead = f"; if {second} is the classifier, leave out the other one with ignore={[first]!r}" if second else ""
        raise WeightsError(
            f"{source} has tensors that are not {network.model}'s: {shortened(network.unknown)}; if they do not "
            f"matter, leave them out with ignore={ignore!r} ({options}; to train, make a file without them first: "
            f"`resnet-core convert {shlex.quote(source)} NAME.safetensors {options}`){instead}"
        )


def match_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, *, strict: bool = True, new_head: bool = False
) -> tuple[dict[str, Tensor], LoadReport]:
    """What `load_weights` would copy under the model's names, and its report. The model may be on the meta device.

    Raises what `load_weights` raises; the message begins with `source`.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = without_wrappers(dict(weights))
    if own and all(name.startswith("module.") for name in own):
        found = {f"module.{name}": value for name, value in found.items()}

    # The head's names, which a new head keeps out.
    head = head_prefix(model)
    if new_head and head is None:
        raise ValueError(f"new_head=True needs get_classifier() or fc, and {model._get_name()} has neither")
    in_head = {name for name in [*own, *found] if head is not None and name.startswith(head)}
    kept = in_head if new_head else set()

    matched = {name: value for name, value in found.items() if name in own and name not in kept}
    report = LoadReport(
        loaded=len(matched),
        dropped=tuple(sorted(name for name in found if name in kept)),
        missing=tuple(name for name in own if name not in found and name not in kept),
        unexpected=tuple(sorted(name for name in found if name not in own and name not in kept)),
    )

    faults = list(find_faults(matched, own, in_head))
    if not matched:
        faults = [
            f"none of its names ({shortened(found)}) is the model's ({shortened(own)}); `resnet-core inspect FILE` "
            "shows what is in a file"
        ]
    elif strict:
        required = [name for name in report.missing if name not in batch_counts(model)]
        faults += [f"these are missing: {shortened(required)}"] if required else []
        faults += [f"these are unexpected: {shortened(report.unexpected)}"] if report.unexpected else []
    if faults:
        raise WeightsError(f"{source} cannot be loaded into {model._get_name()}: {'; '.join(faults)}")
    return matched, report


def find_faults(matched: Mapping[str, Tensor], own: Mapping[str, Tensor], in_head: set[str]) -> Iterator[str]:
    """Why tensors cannot become the model's of the same name: a clause for each kind of fault."""
    foreign = [name for name, value in matched.items() if not is_plain(value)]
    pairs = {name: (value, own[name]) for name, value in matched.items() if name not in foreign}
    kinds = [
        name
        for name, (a, b) in pairs.items()
        if (a.is_floating_point(), a.is_complex()) != (b.is_floating_point(), b.is_complex())
    ]
    shapes = [name for name, (a, b) in pairs.items() if a.shape != b.shape]
    if foreign:
        yield f"these are not dense tensors: {shortened(foreign)}"
    if kinds:
        yield f"these are integers where the model's are floating, or the reverse: {shortened(kinds)}"
    if shapes:
        first = shapes[0]
        sizes = f"{first}: {list(matched[first].shape)}, model {list(own[first].shape)}"
        yield f"these have the wrong shape: {shortened(shapes)} ({sizes})"
        if set(shapes) <= in_head:
            yield (
                "the number of classes differs: load_weights(..., new_head=True) keeps the model's head, "
                "reset_classifier() makes it the weights' size first"
            )
    if not (foreign or kinds or shapes):
        floats = {name: a.to(b.dtype) for name, (a, b) in pairs.items() if a.is_floating_point()}
        wild = [name for name, value in floats.items() if not value.isfinite().all()]
        if wild:
            yield f"these are not finite in the model's dtype: {shortened(wild)}"


def head_prefix(model: nn.Module) -> str | None:
    """The start of the names of the head's tensors, as "fc."; None for a model without a head."""
    network: Any = model
    head = network.get_classifier() if hasattr(network, "get_classifier") else getattr(network, "fc", None)
    return next((f"{name}." for name, module in model.named_modules() if name and module is head), None)


def batch_counts(model: nn.Module) -> set[str]:
    """Names of the BatchNorms' `num_batches_tracked`, which files from before torch 0.4.1 lack."""
    norms = (name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return {f"{name}.num_batches_tracked".lstrip(".") for name in norms}


def is_plain(value: object) -> bool:
    """Whether it is a dense tensor with values."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, without the prefixes that wrappers put before every name."""
    for wrapper in WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return without_wrappers({name.removeprefix(wrapper): value for name, value in tensors.items()})
    return tensors
