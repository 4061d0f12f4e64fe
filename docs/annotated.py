"""The annotated source: a file of the package, its definitions in order, each beside a note on it.

```{annotated} resnet_core/models/resnet.py
```

The notes of that page's file stand in docs/annotated/notes/resnet.md, one heading for each definition. A definition
without a note, and a note whose definition has gone, are errors. A private method may do without: then it is shown
below the one before it.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent
NOTES = ROOT / "docs" / "annotated" / "notes"
PARAGRAPH = 30  # lines; a longer class is shown method by method


@dataclass(frozen=True)
class Piece:
    """A definition, with the comments above it; the lines count from 1."""

    name: str
    first: int
    last: int


def pieces(source):
    """The parts of a file in its order: what stands before the first definition, definitions, constants."""
    lines = source.splitlines()
    found = []
    for node in ast.parse(source).body:
        name = name_of(node)
        if name is None:
            continue
        methods = [each for each in getattr(node, "body", []) if isinstance(each, ast.FunctionDef)]
        if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno > PARAGRAPH:
            starts = [first_line(each, lines) for each in methods]
            found.append(Piece(name, first_line(node, lines), starts[0] - 1))
            ends = [*(start - 1 for start in starts[1:]), node.end_lineno]
            parts = zip(methods, starts, ends, strict=True)
            found.extend(Piece(f"{name}.{each.name}", start, end) for each, start, end in parts)
        else:
            found.append(Piece(name, first_line(node, lines), node.end_lineno))
    return [Piece("The head of the file", 1, found[0].first - 1), *found]


def name_of(node):
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target).strip("()")
    return None


def first_line(node, lines):
    """With its decorators, and the comment that stands directly above."""
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    while lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return first


def notes_of(path):
    """Heading -> text of the notes file."""
    parts = re.split(r"^## (.+)\n", (NOTES / f"{Path(path).stem}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def problems(path):
    """What is wrong between a file and its notes, as sentences."""
    names = [piece.name for piece in pieces((ROOT / path).read_text(encoding="utf-8"))]
    notes = notes_of(path)
    needed = [name for name in names if name not in notes and not is_private(name)]
    missing = [f"{path}: {name} has no note in {Path(path).stem}.md" for name in needed]
    return missing + [f"{Path(path).stem}.md: {name} is not in {path}" for name in notes if name not in names]


def is_private(name):
    return name.rpartition(".")[2].startswith("_") and not name.endswith("__")


def joined(found, notes):
    """The pieces, those without a note added to the one before."""
    rows = []
    for piece in found:
        if piece.name in notes:
            rows.append(piece)
        else:
            rows[-1] = Piece(rows[-1].name, rows[-1].first, piece.last)
    return rows


class Annotated(SphinxDirective):
    required_arguments = 1

    def run(self):
        path = self.arguments[0]
        if wrong := problems(path):
            raise self.error("; ".join(wrong))
        source = (ROOT / path).read_text(encoding="utf-8")
        lines, notes = source.splitlines(), notes_of(path)
        self.env.note_dependency(str(ROOT / path))
        return [self.row(piece, lines, notes[piece.name], path) for piece in joined(pieces(source), notes)]

    def row(self, piece, lines, note, path):
        """The note, and to its right the code with the numbers of its lines."""
        text = nodes.container(classes=["note"])
        title = piece.name if piece.name.startswith("The ") else f"`{piece.name}`"
        self.state.nested_parse(StringList([f"**{title}**", "", *note.splitlines()], path), 0, text)
        code = "\n".join(lines[piece.first - 1 : piece.last]).rstrip()
        block = nodes.literal_block(code, code, language="python", linenos=True)
        block["highlight_args"] = {"linenostart": piece.first}
        wrapped = nodes.container(classes=["code"])
        wrapped += block
        row = nodes.container(classes=["annotated"], ids=[nodes.make_id(piece.name)])
        row += [text, wrapped]
        return row


def setup(app):
    app.add_directive("annotated", Annotated)
    return {"parallel_read_safe": True}
