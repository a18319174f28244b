"""An HTML file that needs nothing beside it: a template of this directory, with figures in sections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from bokeh.document import Document
from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, FunctionLoader, StrictUndefined

from lemix_hpc import __version__


@dataclass(frozen=True)
class Section:
    """Figures under a heading, each with a text above it; several in a row where they are small."""

    id: str
    title: str
    text: str
    figures: list[tuple[str, figure]]
    side_by_side: bool = False


def render(template: str, sections: Iterable[Section], **content: object) -> str:
    """The whole page. Sections without figures are left out."""
    shown = [section for section in sections if section.figures]
    drawn = {f"{section.id}-{place}": each for section in shown for place, (_, each) in enumerate(section.figures)}
    script, boxes = _embedded(drawn)
    # Not Bokeh's widgets, tables, WebGL and mathematics: no figure has them.
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_file)
    )
    return environment.get_template(template).render(
        sections=shown,
        boxes=boxes,
        count=len(drawn),
        version=__version__,
        style=_file("page.css"),
        library=library,
        figures=script,
        script=_file("page.js"),
        **content,
    )


def _embedded(drawn: dict[str, figure]) -> tuple[str, dict[str, str]]:
    """The script with all figures and their data, and the element that each is shown in."""
    if not drawn:
        return "", {}
    document = Document()
    # Each time that one is added, Bokeh would look through all others, too.
    with document.models.freeze():
        for each in drawn.values():
            document.add_root(each)
    script, boxes = components(drawn)
    return script, boxes


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
