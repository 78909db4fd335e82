"""The HTML document around a page's parts: style, navigation, scripts, and plotly.js if something is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources

from hwsim.report.drawing import Drawing


@dataclass(frozen=True)
class Part:
    """One section of the document."""

    anchor: str
    name: str  # in the navigation
    html: str


def html_document(title: str, head: str, sections: Sequence[Part], foot: str, drawings: Sequence[Drawing] = ()) -> str:
    """One self-contained HTML document; `title` is text, the other strings are HTML."""
    links = "".join(f'<li><a href="#{part.anchor}">{escape(part.name)}</a></li>' for part in sections)
    navigation = f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n' if len(sections) > 1 else ""
    body = "".join(f'<section id="{part.anchor}">{part.html}</section>\n' for part in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_asset('page.css')}</style></head><body>\n"
        f"<header>{head}</header>\n{navigation}<main>{body}</main>\n<footer>{foot}</footer>\n"
        f"{_scripts(drawings)}</body></html>\n"
    )


def _scripts(drawings: Sequence[Drawing]) -> str:
    if not drawings:
        return ""
    data = json.dumps([{"data": drawing.data, "layout": drawing.layout} for drawing in drawings], allow_nan=False)
    return (
        "<noscript><p>Plots need JavaScript; their numbers stand in the tables below each of them.</p></noscript>\n"
        f'<script type="application/json" id="drawings">{_in_script(data)}</script>\n'
        f"<script>{_plotly()}</script>\n<script>{_asset('page.js')}</script>\n"
    )


@cache
def _asset(name: str) -> str:
    return resources.files("hwsim.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _in_script(get_plotlyjs())


def _in_script(text: str) -> str:
    """Text that cannot end the script element that it stands in."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
