"""Links that leave docs/ for a file of the repository lead to a page of the site that shows the file."""

import ast
import html
import re
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?P<path>\.\./[^)#]+|[\w./-]+\.(?:py|toml|jsonl|json))(?P<anchor>#[^)]*)?\)")


def setup(app):
    app.shown = set()  # files and folders that some page links to
    app.connect("source-read", redirect_links)
    app.connect("html-collect-pages", collect_pages)


def redirect_links(app, name, source):
    """`../resnet_core/models/resnet.py` in docs/page.md becomes a link to the page that shows that file."""
    page = Path(app.srcdir, name).parent

    def redirect(found):
        path = (page / found["path"]).resolve()
        if path.suffix in (".md", ".svg", ".png") or not path.is_relative_to(ROOT):
            return found[0]
        show(app, path)
        up = "../" * name.count("/")
        return f"](repository:{up}source/{path.relative_to(ROOT)}.html)"

    source[0] = LINK.sub(redirect, source[0])


def show(app, path):
    app.shown.add(path)
    if path.is_dir():
        app.shown.update(file for file in path.glob("*.py"))


def collect_pages(app):
    for path in sorted(app.shown):
        name = path.relative_to(ROOT)
        body = folder_page(path) if path.is_dir() else file_page(path)
        yield f"source/{name}", {"title": str(name), "body": f"<h1>{name}</h1>\n{body}"}, "page.html"


def folder_page(path):
    """A folder's modules with the first lines of their docstrings."""
    rows = []
    for file in sorted(path.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        line = html.escape((docstring.splitlines() or [""])[0])
        rows.append(f'<li><a href="{path.name}/{file.name}.html"><code>{file.name}</code></a> {line}</li>')
    return f"<ul>{''.join(rows)}</ul>"


def file_page(path):
    lexer = get_lexer_for_filename(path.name)
    return highlight(path.read_text(encoding="utf-8"), lexer, HtmlFormatter(linenos="inline", lineanchors="L"))
