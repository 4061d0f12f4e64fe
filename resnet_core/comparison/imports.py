"""Import the file in which somebody's network is, and say what went wrong there in their terms."""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from resnet_core.foundation.errors import first_line

HERE = Path(__file__).parent
INSTALLED = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib"))
"""Where frames of libraries are."""

DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "yaml": "PyYAML",
    "dotenv": "python-dotenv",
    "bs4": "beautifulsoup4",
    "git": "GitPython",
    "pytorch_lightning": "pytorch-lightning",
    "labml_helpers": "labml-helpers",
    "labml_nn": "labml-nn",
}
"""What is imported -> what pip installs, where the two have other names."""

WATCH_SECONDS = 5.0
REMEDY = 'put it under `if __name__ == "__main__":`'


def import_source(place: str, source: Path | None) -> ModuleType:
    """The module of a file, or of this name. `source` is its file, where that is known.

    Raises ValueError, with the user's line and a remedy, for anything that the import raises. Warns with the line when
    the import takes longer than WATCH_SECONDS, as it does for a file that trains.
    """
    arguments, sys.argv = sys.argv, [place]  # a script that reads its own options finds none
    try:
        with watched(source):
            return import_file(Path(place).expanduser().resolve()) if place.endswith(".py") else import_module(place)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{place} cannot be imported ({with_place(error)}){remedy_of(error, source)}") from error
    finally:
        sys.argv = arguments


def import_file(file: Path) -> ModuleType:
    """The module of a file, as part of the packages around it, so that its relative imports work."""
    folders = [file.parent]
    dots = [node.level for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.ImportFrom)]
    while (folders[-1] / "__init__.py").is_file() or len(folders) <= max(dots, default=0):
        folders.append(folders[-1].parent)

    # The folder around all packages is where its other imports begin.
    top = folders[-1]
    sys.path.insert(0, str(top))
    name = ".".join(file.relative_to(top).with_suffix("").parts)
    if len(folders) > 1:
        return import_module(name)

    # A file may have the name of a module that is already imported, such as `types`.
    present = sys.modules.get(name)
    if present is not None and getattr(present, "__file__", None) == str(file):
        return present
    name = name if present is None else f"{name} of {file.parent}"
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def watched(source: Path | None) -> Iterator[None]:
    """Warns when the code inside this context takes long, with the line of the file that it has come to."""
    thread = threading.get_ident()

    def report() -> None:
        stack = traceback.extract_stack(sys._current_frames().get(thread))
        number = module_line(stack, source)
        if source is None or number is None:
            return
        line = line_of(source, number)
        if not line.startswith(("import ", "from ")):  # a library that loads slowly is nothing to change
            text = f"{source}:{number} has been running for {WATCH_SECONDS:g} seconds while the file is imported"
            warnings.warn(f"{text}: `{line}`; {REMEDY}", stacklevel=1)

    timer = threading.Timer(WATCH_SECONDS, report)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def module_line(stack: traceback.StackSummary, source: Path | None) -> int | None:
    """The line that the file's own statements, outside functions, have come to."""
    lines = [
        frame.lineno
        for frame in stack
        if frame.name == "<module>" and source is not None and Path(frame.filename) == source.resolve()
    ]
    return lines[-1] if lines else None


def line_of(source: Path, number: int) -> str:
    return source.read_text(encoding="utf-8", errors="replace").splitlines()[number - 1].strip()


def remedy_of(error: BaseException, source: Path | None) -> str:
    """What to do about an error that an import raised: install a package, or run less when the file is imported."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        above = source.resolve().parents[1:4] if source else ()
        for folder in above:
            if (folder / package).is_dir() or (folder / f"{package}.py").is_file():
                return f"; set PYTHONPATH={folder}"
        return f"; pip install {DISTRIBUTIONS.get(package, package)}"

    number = module_line(traceback.extract_tb(error.__traceback__), source)
    if source is None or number is None or not calls_something(source, number):
        return ""
    return f": line {number} runs when the file is imported, `{line_of(source, number)}`; {REMEDY}"


def calls_something(source: Path, number: int) -> bool:
    """Whether the file's statement at this line calls a function, rather than imports or defines something."""
    return any(
        isinstance(part, ast.Call)
        for node in ast.parse(source.read_bytes()).body
        if node.lineno <= number <= (node.end_lineno or number)
        and not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)
        for part in ast.walk(node)
    )


def with_place(error: BaseException) -> str:
    """An error's type and first line, and the line that raised it: the user's own if there is one, or a library's."""
    text = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError):
        return f"{text}, at {error.filename}:{error.lineno}"

    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent != HERE
        and not {"torch", "importlib"} & {*Path(frame.filename).parts}
        and not frame.filename.startswith("<frozen")
    ]
    own = [frame for frame in frames if not frame.filename.startswith(INSTALLED)]
    return f"{text}, at {(own or frames)[-1].filename}:{(own or frames)[-1].lineno}" if frames else text
