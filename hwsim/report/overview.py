"""One page over all studies of a folder: question, claim, verdict, and a link to each study's own page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hwsim.errors import HwsimError, SpecError
from hwsim.expected import study_line
from hwsim.report import markup
from hwsim.report.frame import Part, html_document
from hwsim.report.page import write_page
from hwsim.results import Results, write_atomically


@dataclass(frozen=True)
class Study:
    """What the overview says of one study."""

    name: str
    question: str
    claim: str
    verdict: str
    page: str  # link relative to the overview; "" if there is no page
    results: Results | None = None


def studies(folder: Path | str, pages: Path | str | None = None) -> list[Study]:
    """Every study in `folder` (a folder of folders), by name; a damaged one says so instead of hiding the others.

    `pages` is where the studies' pages lie, each in a folder of its study's name; `folder` itself unless given.
    """
    found = []
    for place in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        if any((place / name).is_file() for name in ("experiment.yaml", "expected.yaml", "results.json")):
            found.append(_study(place, Path(pages or folder)))
    return found


def write_overview(folder: Path | str, out_dir: Path | str | None = None) -> Path:
    """Draw the page of every study in `folder` and one page that links them; returns the path of the latter.

    Raises:
        SpecError: the folder holds no study, or cannot be written to.
    """
    out = Path(out_dir or folder)
    found = studies(folder)
    if not found:
        raise SpecError(f"{folder}: holds neither results.json nor folders of studies")
    for study in found:
        results = study.results
        if results is not None:
            write_page(results, out / study.name)
    return write_atomically(out / "index.html", draw_overview(studies(folder, out)))


def draw_overview(found: Iterable[Study]) -> str:
    """The overview as HTML text."""
    rows = "".join(
        f'<tr><th scope="row">{_name(study)}</th><td>{escape(study.claim or study.question)}</td>'
        f"<td>{_verdicts(study.verdict)}</td></tr>"
        for study in found
    )
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Studies"><table>'
        '<thead><tr><th scope="col">study</th><th scope="col">claim or question</th>'
        '<th scope="col">verdict</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    note = (
        '<p class="note">Confirmed: the 95 % interval of our mean lies where the claim stands. Within noise: it lies '
        "across an end of that range. A study without expectations has questions of its own.</p>"
    )
    return html_document(
        title="Studies",
        head='<p class="kicker">hwsim</p><h1>What the studies found</h1>',
        sections=[Part("studies", "Studies", table + note)],
        foot="<p>Each study folder holds its experiment, its results and what was expected of them.</p>",
    )


def _study(place: Path, pages: Path) -> Study:
    results = None
    try:
        claim, verdict = study_line(place)
        if (place / "results.json").is_file():
            results = Results.read(place)
    except HwsimError as error:
        claim, verdict = "", f"cannot be read: {str(error).splitlines()[0]}"
    question = results.question if results is not None else ""
    page = f"{place.name}/index.html" if (pages / place.name / "index.html").is_file() else ""
    return Study(place.name, question, claim, verdict, page, results)


def _name(study: Study) -> str:
    return f'<a href="{escape(study.page)}">{escape(study.name)}</a>' if study.page else escape(study.name)


def _verdicts(text: str) -> str:
    """Each counted verdict as its own mark: "5 confirmed, 1 not comparable"."""
    parts = text.split(", ")
    counted = all(part.partition(" ")[0].isdigit() for part in parts)
    return "<br>".join(map(markup.verdict, parts)) if counted else escape(text)
