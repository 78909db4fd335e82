"""The overview lists every study, links what has a page, and survives a damaged one."""

import re

from hwsim.report.overview import studies, write_overview

EXPECTED = """\
schema: expected/1
claim: Top-k at 40 keeps <the> accuracy.
source: made up
claims:
  - {name: accuracy, quantity: accuracy_difference, configuration: topk k=40, at_least: -5}
  - {name: time, not_comparable: another machine}
"""


def make_folder(folder, build):
    for name in ("good", "new", "damaged", "not_a_study"):
        (folder / name).mkdir()
    (folder / "good" / "expected.yaml").write_text(EXPECTED, encoding="utf-8")
    build().write(folder / "good" / "results.json")
    (folder / "good" / "index.html").write_text("", encoding="utf-8")
    (folder / "new" / "experiment.yaml").write_text("", encoding="utf-8")
    (folder / "damaged" / "results.json").write_text("{", encoding="utf-8")
    (folder / "damaged" / "expected.yaml").write_text(EXPECTED, encoding="utf-8")


def test_every_study_has_a_line(tmp_path, build):
    make_folder(tmp_path, build)
    found = {study.name: study for study in studies(tmp_path)}
    assert sorted(found) == ["damaged", "good", "new"]
    assert found["good"].verdict == "1 confirmed, 1 not comparable"
    assert found["new"].verdict == "not run yet"
    assert "not valid JSON" in found["damaged"].verdict


def test_the_page_links_studies_and_escapes_their_words(tmp_path, build):
    make_folder(tmp_path, build)
    text = write_overview(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'<td>|href="([^"#]*)"', text).count("good/index.html") == 1
    assert "Top-k at 40 keeps &lt;the&gt; accuracy." in text
    assert "plotly" not in text
    assert text.count('class="verdict') == 2
