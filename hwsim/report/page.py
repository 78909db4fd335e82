"""`Results` to one self-contained HTML page: what was asked, the answer, the evidence and where it comes from.

The page holds its style, its script and plotly.js, so it opens from a disk without a network. It is drawn from the
content of results.json alone: what is not in there is said to be missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import count
from pathlib import Path

from hwsim.records import Machine
from hwsim.report import figures, headline, markup, numerics, tables, words
from hwsim.report.drawing import Drawing, draw
from hwsim.report.frame import Part, html_document
from hwsim.report.palette import Palette
from hwsim.results import Results, write_atomically
from hwsim.section import Figure, Section

_MOST_NOTES = 4  # at the head of the page


def write_page(results: Results, out_dir: Path | str) -> Path:
    """Write ``index.html`` into `out_dir` (whole or not at all) and return its path.

    Raises:
        SpecError: the folder cannot be written to.
    """
    return write_atomically(Path(out_dir) / "index.html", draw_page(results))


def draw_page(results: Results) -> str:
    """The page as text: the same results always give the same page."""
    return _Page(results).text()


class _Page:
    """Collects the parts of one page and the drawings that its script will need."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.palette = Palette(results.configurations, results.baseline)
        self.drawings: list[Drawing] = []
        self.parts: list[Part] = []
        self.choosers = count()

    def text(self) -> str:
        self._build()
        return html_document(
            title=self.results.question or self.results.name,
            head=self._head(),
            sections=self.parts,
            foot=self._foot(),
            drawings=self.drawings,
        )

    # ---- head and foot

    def _head(self) -> str:
        results = self.results
        answer = markup.paragraphs(words.QUICK if results.quick else results.answer)
        for part in () if results.quick else headline.answer(results):
            points = "".join(f"<li>{escape(point)}</li>" for point in part.points)
            answer += f"<p>{escape(part.text)}</p>" + (f"<ul>{points}</ul>" if points else "")
        gaps = "".join(f"<li>{escape(gap)}</li>" for gap in results.gaps())
        if gaps:
            gaps = f'<div class="answer gaps"><p>Missing from the results:</p><ul>{gaps}</ul></div>'
        quick = "quick run" if results.quick else ""
        kicker = " · ".join(part for part in (results.name, quick, tables.setting(results)) if part)
        answer = f'<div class="answer">{answer}</div>' if answer else ""
        title = escape(results.question or results.name)
        more = ("" if results.quick else self._cards()) + self._verdicts() + self._notes()
        return f'<p class="kicker">{escape(kicker)}</p><h1>{title}</h1>{answer}{gaps}{more}'

    def _verdicts(self) -> str:
        """The verdicts of several sections at a glance, each leading to its section."""
        stated = [(i, section) for i, section in enumerate(self.results.sections) if section.verdict]
        if len(stated) < 2:
            return ""
        rows = "".join(
            f'<li>{markup.verdict(section.verdict or "")} <a href="#section{i}">{escape(section.title)}</a></li>'
            for i, section in stated
        )
        return f'<ul class="verdicts">{rows}</ul>'

    def _notes(self) -> str:
        """What the simulator wants said stands at the head, the longer part of it with the assumptions."""
        said = tables.notes(self.results)
        items = "".join(f"<li>{escape(note)}</li>" for note in said[:_MOST_NOTES])
        if len(said) > _MOST_NOTES:
            items += f'<li><a href="#assumptions">{len(said) - _MOST_NOTES} more</a></li>'
        return f'<div class="answer notes"><p>To keep in mind:</p><ul>{items}</ul></div>' if said else ""

    def _cards(self) -> str:
        cards = [
            f'<div class="card"><dt>{escape(card.title)}</dt>'
            f"<dd>{escape(card.value)}<small>{escape(card.note)}</small></dd></div>"
            for card in tables.cards(self.results)
        ]
        pairs = " pairs" if len(cards) % 3 and len(cards) % 2 == 0 else ""
        return f'<dl class="cards{pairs}">{"".join(cards)}</dl>' if cards else ""

    def _foot(self) -> str:
        made = self.results.provenance
        text = f"Drawn by hwsim from results.json alone; the results were made by hwsim {made.hwsim}, {made.created}."
        return f"<p>{escape(text)}</p>"

    # ---- sections

    def _build(self) -> None:
        results = self.results
        if results.configurations:
            self._add("summary", "Summary", "Every configuration", self._summary())
        for number, section in enumerate(results.sections):
            self._add(f"section{number}", section.title, section.title, self._section(section), section.verdict)
        per_machine: tuple[tuple[str, str, str, Callable[[Machine], list[Figure | None]]], ...] = (
            ("tradeoff", "Accuracy and cost", "What accuracy costs", self._tradeoffs),
            ("passes", "Passes", "Where the cycles and the energy of a step go", self._passes),
            ("energy", "Energy", "Which component takes the energy, and how sure that is", self._energy),
            ("stalls", "Stalls", "What the array waits for", self._stalls),
            ("roofline", "Roofline", "How close to its roof each GEMM runs", self._rooflines),
        )
        for anchor, name, title, build in per_machine:
            drawn = [figure for machine in results.machines for figure in build(machine) if figure is not None]
            if drawn:
                used = [tables.usage(results, machine) for machine in results.machines] if anchor == "roofline" else []
                more = "".join(markup.table(table) for table in used if table.rows)
                self._add(anchor, name, title, self._figures(drawn) + more)
            if anchor == "passes" and drawn:
                self._add("layers", "Layers", "Layer by layer", self._layers())
        curves = [
            figures.training_curves(results, "dev_accuracy", f"dev {results.summary().measure}", percent=True),
            figures.training_curves(results, "train_loss", "training loss", percent=False),
        ]
        self._add_figures("training", "Training", "How training went", curves)
        if any(trial.training.profile is not None for trial in results.trials):
            self._add("numerics", "Numerics", "What the numbers did", self._numerics())
        kept = [figures.kept_shares(results)]
        self._add_figures("sparsity", "Kept", "What top-k keeps", kept, tables.kept_positions(results))
        if results.simulations:
            self._add("assumptions", "Assumptions", "What the costs rest on", self._assumptions())
        self._add("provenance", "Provenance", "How these numbers came about", self._provenance())

    def _add(self, anchor: str, name: str, title: str, html: str, verdict: str | None = None) -> None:
        mark = markup.verdict(verdict) if verdict else ""
        self.parts.append(Part(anchor, name, f"<h2>{escape(title)}{mark}</h2>{html}"))

    def _add_figures(
        self, anchor: str, name: str, title: str, drawn: Iterable[Figure | None], more: Sequence = ()
    ) -> None:
        present = [figure for figure in drawn if figure is not None]
        if present or more:
            self._add(anchor, name, title, self._figures(present) + "".join(map(markup.table, more)))

    def _summary(self) -> str:
        results = self.results
        content = markup.table(tables.accuracy(results), emphasize=tables.baseline_rows(results))
        content += f'<p class="note">{escape(tables.accuracy_note(results))}</p>'
        for machine in results.machines:
            costs = tables.costs(results, machine)
            if costs.rows:
                content += markup.table(costs)
            gains = tables.gains(results, machine)
            if gains.rows:
                content += markup.table(gains)
        return content + (f'<p class="note">{escape(tables.COST_NOTE)}</p>' if results.simulations else "")

    def _section(self, section: Section) -> str:
        return (
            markup.paragraphs(section.text)
            + self._figures(section.figures)
            + "".join(markup.table(table) for table in section.tables)
        )

    def _tradeoffs(self, machine: Machine) -> list[Figure | None]:
        return [figures.tradeoff(self.results, machine, what) for what in ("energy", "cycles")]

    def _passes(self, machine: Machine) -> list[Figure | None]:
        return [figures.by_pass(self.results, machine, what) for what in ("cycles", "energy")]

    def _energy(self, machine: Machine) -> list[Figure | None]:
        return [figures.energy_ranges(self.results, machine)]

    def _stalls(self, machine: Machine) -> list[Figure | None]:
        return [figures.stalls(self.results, machine)]

    def _rooflines(self, machine: Machine) -> list[Figure | None]:
        return [figures.roofline(self.results, machine)]

    def _layers(self) -> str:
        """One pair of figures for each configuration and machine, behind a chooser: all at once would be too many."""
        chooser = f"chooser{next(self.choosers)}"
        options: list[str] = []
        choices: list[str] = []
        for machine in self.results.machines:
            for configuration in self.results.configurations:
                drawn = [
                    figure
                    for what in ("cycles", "energy")
                    if (figure := figures.by_layer(self.results, machine, configuration.name, what)) is not None
                ]
                if drawn:
                    value = str(len(options))
                    name = escape(f"{configuration.name} on {machine.name}")
                    options.append(f'<option value="{value}">{name}</option>')
                    choices.append(f'<div data-chooser="{chooser}" data-choice="{value}">{self._figures(drawn)}</div>')
        select = f'<select id="{chooser}" autocomplete="off">{"".join(options)}</select>'
        return f'<p class="chooser"><label>Show {select}</label></p>' + "".join(choices)

    def _numerics(self) -> str:
        """One profiled trial of each configuration, behind a chooser."""
        chooser = f"chooser{next(self.choosers)}"
        options = choices = ""
        for value, (name, seed, profile) in enumerate(numerics.profiled(self.results)):
            options += f'<option value="{value}">{escape(name)}</option>'
            content = numerics.numbers(profile, seed)
            choices += f'<div data-chooser="{chooser}" data-choice="{value}">{content}</div>'
        select = f'<select id="{chooser}" autocomplete="off">{options}</select>'
        return f'<p class="chooser"><label>Show {select}</label></p>{choices}'

    def _figures(self, drawn: Sequence[Figure]) -> str:
        if not drawn:
            return ""
        return f'<div class="figures{" single" if len(drawn) == 1 else ""}">{"".join(map(self._figure, drawn))}</div>'

    def _figure(self, figure: Figure) -> str:
        drawing = draw(figure, self.palette)
        self.drawings.append(drawing)
        caption = escape(figure.caption) + (f" Source: {escape(figure.source)}" if figure.source else "")
        return (
            f"<figure><h3>{escape(figure.title)}</h3>{markup.legend(drawing.legend)}"
            f'<div class="plot" data-drawing="{len(self.drawings) - 1}" style="height:{drawing.height}px" '
            f'role="img" aria-label="{escape(figure.title)}; its numbers stand below"></div>'
            f"<figcaption>{caption}</figcaption>"
            f"<details><summary>Numbers</summary>{markup.table(drawing.numbers, caption=False)}</details></figure>"
        )

    def _assumptions(self) -> str:
        results = self.results
        said = tables.notes(results)
        notes = "".join(f"<li>{escape(note)}</li>" for note in said)
        content = f"<h3>To keep in mind</h3><ul>{notes}</ul>" if len(said) > _MOST_NOTES else ""
        for table in tables.assumptions(results):
            body = markup.table(table, caption=False)
            content += f"<details><summary>{escape(table.title)}</summary>{body}</details>"
        return content or "<p>The results record no assumptions.</p>"

    def _provenance(self) -> str:
        facts = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in tables.origin(self.results)
        )
        experiment = escape(json.dumps(self.results.experiment, indent=2, ensure_ascii=False))
        repeatable = f'<p class="note">{escape(tables.REPEATABLE)}</p>' if self.results.trials else ""
        return (
            f'<dl class="facts">{facts}</dl>{repeatable}'
            f"<details><summary>The experiment, defaults written out</summary><pre>{experiment}</pre></details>"
        )
