"""HTML reports: one file with its figures, styles and script, which needs no network access."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from keras_transfer.reporting import figures
from keras_transfer.reporting.tables import breakable


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading.

    Args:
        title: empty for a part without a heading.
        caption: a sentence or two below the heading.
        body: HTML, made by `figure`, `note`, `facts` or `Table.html`.
        is_highlighted: whether it is shown in a box.
    """

    title: str
    body: Markup
    caption: str = ""
    is_highlighted: bool = False


def figure(svg: str) -> Markup:
    """The HTML of a figure from `figures.inline_svg`."""
    return Markup('<div class="wide">{}</div>').format(Markup(svg))


def note(text: str) -> Markup:
    """A paragraph in a box, for instance in place of a figure."""
    return Markup('<p class="note">{}</p>').format(text)


def facts(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Labels with short texts, side by side."""
    item = Markup("<div><dt>{}</dt><dd>{}</dd></div>\n")
    found = (item.format(breakable(label), text) for label, text in pairs)
    return Markup("<dl>\n{}</dl>").format(Markup("").join(found))


def render_page(title: str, sentences: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole page; `sentences` are below the title, the most important first."""
    environment = Environment(
        loader=PackageLoader("keras_transfer.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    return template.render(title=title, sentences=sentences, sections=sections, look=vars(figures))
