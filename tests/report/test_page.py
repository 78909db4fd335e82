"""The page: drawn from results.json alone, offline, true to the numbers, and safe with any text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hwsim.records import Configuration
from hwsim.report import headline, tables, words
from hwsim.report.page import draw_page, write_page
from hwsim.results import Results
from hwsim.section import Column, Section, Table
from hwsim.summary import Spread

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'"
VOID = {"meta", "link", "br", "line", "rect", "circle", "path"}


class Outline(HTMLParser):
    """Tags, attributes and visible text; complains about tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.problems = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.problems.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def outline(text):
    parsed = Outline()
    parsed.feed(text)
    parsed.close()
    return parsed


def visible(text):
    return " ".join(" ".join(outline(text).text).split())


@pytest.fixture(scope="module")
def drawn(sample):
    return draw_page(sample)


def test_the_page_of_the_file_is_the_page_of_the_objects(sample, drawn, tmp_path):
    sample.write(tmp_path / "results.json")
    path = write_page(Results.read(tmp_path), tmp_path)
    assert path == tmp_path / "index.html"
    assert path.read_text(encoding="utf-8") == drawn


def test_other_results_give_another_page(sample, drawn):
    trials = (sample.trials[0].model_copy(update={"training": sample.trials[1].training}), *sample.trials[1:])
    assert draw_page(sample.model_copy(update={"trials": trials})) != drawn


def test_nothing_is_fetched(drawn):
    parsed = outline(drawn)
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, name, value)
    style = re.search(r"<style>(.*?)</style>", drawn, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert drawn.count("plotly.js v") == 1  # its script once, and from nowhere else


def test_tags_close_and_ids_are_unique(drawn, build, section):
    for text in (drawn, draw_page(build(sections=[section, section]))):
        parsed = outline(text)
        assert parsed.problems == []
        assert parsed.open == []
        ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        targets = [attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"]
        assert set(targets) <= set(ids)


def test_every_figure_has_a_drawing_and_its_numbers(drawn):
    parsed = outline(drawn)
    places = [int(attributes["data-drawing"]) for _, attributes in parsed.tags if "data-drawing" in attributes]
    island = re.search(r'<script type="application/json" id="drawings">(.*?)</script>', drawn, re.DOTALL).group(1)
    assert places == list(range(len(json.loads(island))))
    assert drawn.count("<summary>Numbers</summary>") == len(places)


def test_tables_hold_the_numbers_of_the_results(sample, drawn):
    text = visible(drawn)
    for row in sample.summary().accuracy:
        assert f"{row.test_accuracy.mean * 100:.2f}" in text
    for row in sample.summary().costs:
        assert f"{row.step.cycles:,.0f}" in text
        assert words.ratio(row.gain_over_baseline.cycles if row.gain_over_baseline else None) in text


def test_a_cost_table_holds_the_costs_in_its_units(sample):
    machine = sample.machines[0]
    table = tables.costs(sample, machine)
    unit = {column.name: column.unit for column in table.columns}
    scale = {"µJ": 1e6, "nJ": 1e3, "mJ": 1e9, "µs": 1.0, "ms": 1e3, "million": 1e6, "thousand": 1e3}
    for row in table.rows:
        cells = {column.name: value for column, value in zip(table.columns, row, strict=True)}
        cost = sample.summary().cost_of(cells["configuration"], machine.name)
        assert cells["cycles"] == cost.step.cycles
        assert cells["energy"] * scale[unit["energy"]] == pytest.approx(cost.step.energy_pj.nominal)
        assert cells["time"] * scale[unit["time"]] == pytest.approx(cost.step.time_us)
        if cost.to_target:
            goal = cells["energy to the target"] * scale[unit["energy to the target"]]
            assert goal == pytest.approx(cost.to_target.energy_pj.nominal)
        else:
            assert cells["energy to the target"] is None


def said(results):
    return " ".join(" ".join((part.text, *part.points)) for part in headline.answer(results))


def test_the_use_of_a_machine_is_that_of_the_simulation(sample):
    machine = sample.machines[0]
    table = tables.usage(sample, machine)
    assert [row[0] for row in table.rows] == [configuration.name for configuration in sample.configurations]
    record = next(s for s in sample.simulations if s.accelerator == machine.name and s.work == "trained")
    macs = sum(op.macs for op in record.ops)
    cycles = sum(op.cycles for op in record.ops)
    assert table.rows[0][1] == pytest.approx(macs / 1e6)
    assert table.rows[0][2] == pytest.approx(macs / 1024 / cycles)  # 1024 MACs a cycle at its peak
    assert table.rows[0][4] == pytest.approx(record.peak_memory_bytes / 1024)


def test_the_headline_names_the_cheapest_configuration_that_keeps_the_accuracy(sample):
    summary = sample.summary()
    for finding in headline.findings(summary):
        kept = [row for row in summary.accuracy if headline.keeps_accuracy(row)]
        costs = [summary.cost_of(row.configuration.name, finding.accelerator) for row in kept]
        assert finding.best.step.energy_pj.nominal == min(cost.step.energy_pj.nominal for cost in costs)
    text = said(sample)
    best = headline.findings(summary)[0].best
    assert best.configuration.name in text
    assert f"{100 / best.gain_over_baseline.cycles:.0f} % of the cycles" in text
    assert words.ratio(best.gain_step.energy) in text


def test_the_page_of_a_parser_says_what_was_measured(sample):
    def measured(trial):
        return trial.model_copy(update={"training": trial.training.model_copy(update={"measure": "UAS"})})

    parser = Results(**{**dict(sample), "trials": tuple(map(measured, sample.trials))})
    page, usual = draw_page(parser), draw_page(sample)
    assert "test UAS" in page and "dev UAS" in page and "UAS against energy" in page
    for wrong in ("test accuracy", "dev accuracy", "Test accuracy"):
        assert wrong in usual and wrong not in page


def test_a_configuration_that_loses_accuracy_is_no_finding(sample):
    row = sample.summary().accuracy_of("topk k=10")
    assert row.difference.interval[1] < 0
    assert not headline.keeps_accuracy(row)


def test_few_seeds_cannot_pass_off_a_large_loss_as_noise(sample):
    row = sample.summary().accuracy_of("topk k=40")
    wide = Spread(-0.03, 0.02, -0.05, -0.01, 2)  # two seeds: an interval of plus and minus 18 points
    assert replace(row, difference=wide).within_noise
    assert not headline.keeps_accuracy(replace(row, difference=wide))
    assert headline.keeps_accuracy(replace(row, difference=replace(wide, mean=-0.005)))


def test_the_headline_says_when_nothing_keeps_the_accuracy(build):
    text = said(build(configurations=("dense", "topk k=10")))
    assert "no other configuration keeps the accuracy of dense" in text


def test_one_seed_is_said_to_have_no_interval(build):
    results = build(configurations=("dense", "topk k=40"), seeds=(0,))
    assert "1 seed, so without an interval" in said(results)


def test_a_single_seed_is_no_answer_where_others_have_several(sample):
    best = headline.findings(sample.summary())[0].best.configuration.name

    def with_one(seed):
        trials = [trial for trial in sample.trials if trial.configuration != best or trial.training.seed == seed]
        return Results(**{**dict(sample), "trials": tuple(trials)}).summary()

    lucky = [one for one in map(with_one, (0, 1, 2)) if headline.keeps_accuracy(one.accuracy_of(best))]
    assert lucky
    for summary in lucky:
        assert summary.accuracy_of(best).difference.interval is None
        assert best not in [finding.best and finding.best.configuration.name for finding in headline.findings(summary)]


def test_what_is_missing_is_said_and_not_made_up(build):
    results = build()
    untrained = draw_page(results.model_copy(update={"trials": ()}))
    assert "Nothing was trained here" in visible(untrained)
    assert "dense has no trial with seed 0, 1, 2." in visible(untrained)
    assert "How training went" not in visible(untrained)
    unsimulated = draw_page(build(simulations=[], machines=()))
    assert "No step was simulated" in visible(unsimulated)
    assert "Roofline" not in visible(unsimulated)
    empty = build(configurations=("dense",), machines=()).model_copy(update={"configurations": (), "trials": ()})
    assert "How these numbers came about" in visible(draw_page(empty))


def test_what_the_simulator_wants_said_stands_at_the_head(drawn, build, sample):
    head = visible(drawn.partition("<nav")[0])
    assert "To keep in mind: fc1.output: the plan sums sequentially, this machine in chunks of 32." in head
    noisy = sample.simulations[0].model_copy(update={"notes": tuple(f"note {i}." for i in range(9))})
    text = draw_page(build(simulations=[noisy]))
    assert "5 more" in visible(text.partition("<nav")[0])
    assert all(f"note {i}." in visible(text.partition("<nav")[2]) for i in range(9))


def test_orders_of_accumulation_are_named_once_for_each_machine(sample):
    both = sample.simulations[0].model_copy(update={"order": "chunked(32, float32), sequential", "work": "ideal"})
    results = sample.model_copy(update={"simulations": (*sample.simulations, both)})
    orders = dict(tables.origin(results))["accumulation order"]
    assert orders == "systolic_32x32: chunked(32), chunked(32, float32), sequential; edge_trainer: chunked(32)"


def test_text_from_users_stays_text(build, section):
    results = build(configurations=("dense", "topk k=40"))
    renamed = json.loads(json.dumps(results.model_dump(mode="json")).replace("topk k=40", json.dumps(HOSTILE)[1:-1]))
    renamed["experiment"] |= {"question": HOSTILE, "name": HOSTILE}
    renamed["answer"] = HOSTILE
    hostile = Results.model_validate_json(json.dumps(renamed))
    table = Table(title=HOSTILE, columns=[Column(name=HOSTILE)], rows=[[HOSTILE]], note=HOSTILE, source=HOSTILE)
    figure = section.figures[1].model_copy(update={"title": HOSTILE, "caption": HOSTILE})
    block = Section(title=HOSTILE, text=HOSTILE, verdict=HOSTILE, tables=[table], figures=[figure])
    text = draw_page(hostile.model_copy(update={"sections": (block,)}))
    plain = draw_page(build(configurations=("dense", "topk k=40"), sections=[block]))
    for drawn in (text, plain):
        parsed = outline(drawn)
        assert parsed.problems == []
        assert [tag for tag, _ in parsed.tags if tag in ("img", "iframe", "object")] == []
        assert sum(tag == "script" for tag, _ in parsed.tags) == 3
        assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert "alert(1)" in visible(text)  # shown as the text it is
    island = re.search(r'<script type="application/json" id="drawings">(.*?)</script>', text, re.DOTALL).group(1)
    for drawing in json.loads(island):
        for trace in drawing["data"]:
            assert "<img" not in trace.get("name", "")  # plotly reads some HTML in its texts
            assert "<img" not in trace.get("hovertemplate", "")


def test_sections_alone_make_a_page(build, section):
    results = build(configurations=("dense",), machines=(), sections=[section])
    alone = results.model_copy(update={"configurations": (), "trials": (), "answer": "Within 7 %."})
    text = visible(draw_page(alone))
    assert "TPU GEMMs: simulated against measured" in text
    assert "passed" in text
    assert "Within 7 %." in text
    assert "98.01" in text
    assert "Source: Sun et al., ICML 2017, Table 1" in text
    assert "Every configuration" not in text


def test_verdicts_of_several_sections_stand_at_the_head(build, section):
    sections = [section, section.model_copy(update={"title": "Another machine", "verdict": "failed"})]
    head = draw_page(build(sections=sections)).partition("<nav")[0]
    assert "✓ passed TPU GEMMs: simulated against measured ✗ failed Another machine" in visible(head)
    assert 'href="#section0"' in head and 'href="#section1"' in head
    assert 'href="#section0"' not in draw_page(build(sections=sections[:1])).partition("<nav")[0]


def test_the_page_reads_on_a_phone(drawn):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in drawn
    parsed = outline(drawn)
    assert sum(tag == "table" for tag, _ in parsed.tags) == drawn.count('<div class="scroll"')  # none can widen it


def test_names_of_many_configurations_all_stand_in_the_page(build):
    results = build(configurations=("dense",), machines=())
    many = [Configuration(name=f"c{i}", family="c", precision="float32") for i in range(40)]
    text = visible(draw_page(results.model_copy(update={"configurations": (*results.configurations, *many)})))
    assert all(f"c{i} has no trial" in text for i in range(40))


def test_the_example_in_the_guide_runs(build, tmp_path, monkeypatch, capsys):
    guide = Path(__file__).parents[2] / "docs" / "reading-the-report.md"
    example = guide.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    results = build()
    results.write(tmp_path / "runs" / "quickstart" / "results.json")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(guide), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == len(results.summary().costs)
