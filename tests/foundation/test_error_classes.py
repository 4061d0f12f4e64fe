"""`docs/errors.md` shows every exception class of the package, and what each derives from."""

import importlib
import pkgutil
import re
from pathlib import Path

import resnet_core

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()


def exception_classes():
    """All that a module of the package defines."""
    found = set()
    for module in pkgutil.walk_packages(resnet_core.__path__, "resnet_core."):
        if module.name == "resnet_core.__main__":
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except ModuleNotFoundError as error:  # of an optional library
            if error.name.startswith("resnet_core"):
                raise
            continue
        for value in names.values():
            if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.name:
                found.add(value)
    return found


def tree(classes):
    """The classes and what they derive from, drawn like a tree of folders; one with two bases stands under both."""
    children = {}
    for each in classes:
        for child in each.__mro__[: each.__mro__.index(Exception)]:
            for parent in child.__bases__:
                children.setdefault(parent, set()).add(child)

    def lines(parent, indent):
        ordered = sorted(children.get(parent, ()), key=lambda each: each.__name__)
        for child in ordered:
            is_last = child is ordered[-1]
            yield f"{indent}{'└──' if is_last else '├──'} {child.__name__}"
            yield from lines(child, indent + ("    " if is_last else "│   "))

    return "\n".join([Exception.__name__, *lines(Exception, "")])


def test_the_page_draws_the_tree_of_all_exception_classes():
    assert f"```\n{tree(exception_classes())}\n```" in PAGE


def test_each_exception_class_has_a_row_that_says_where_it_is():
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| [^|]+ \| [^|]+ \|$", PAGE, flags=re.M)
    assert [name for name, _ in rows] == sorted(each.__name__ for each in exception_classes())
    classes = {getattr(importlib.import_module(module), name) for name, module in rows}
    assert classes == exception_classes()
