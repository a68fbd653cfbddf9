"""What the pages of all commands share: one file that holds everything it shows, with the style of page.css."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from jointmae import __version__


def page(
    kind: str, heading: str, lead: str, facts: Iterable[tuple[str, str]], sections: Iterable[tuple[str, str, str]]
) -> str:
    """A whole page: what kind of report, of what, the result in a sentence (HTML), facts, and sections.

    A section is its id, its title and its body as HTML.
    """
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    bodies = "".join(
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(title)}</h2>\n{body}\n</section>\n'
        for name, title, body in sections
    )
    return Template(_resource("page.html")).substitute(
        kind=escape(kind),
        heading=escape(heading),
        style=_resource("page.css"),
        lead=lead,
        facts=shown,
        sections=bodies,
        version=escape(__version__),
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Plain texts as a table; the first column names the rows."""
    columns = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(text)}</td>" for text in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'


def fold(title: str, text: str) -> str:
    """Text that is shown when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _resource(name: str) -> str:
    return files("jointmae.report").joinpath(name).read_text("utf-8")
