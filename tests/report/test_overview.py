"""The overview lists every study, links what has a page, and survives a damaged one."""

import re

import pytest

from hwsim.errors import SpecError
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


def test_pages_can_be_drawn_elsewhere(tmp_path, build):
    (tmp_path / "studies").mkdir()
    make_folder(tmp_path / "studies", build)
    path = write_overview(tmp_path / "studies", tmp_path / "out")
    assert path == tmp_path / "out" / "index.html"
    assert 'href="good/index.html"' in path.read_text(encoding="utf-8")
    assert (tmp_path / "out" / "good" / "index.html").is_file()
    assert not (tmp_path / "studies" / "index.html").exists()


def test_a_folder_without_studies_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"holds neither results\.json nor folders of studies"):
        write_overview(tmp_path)
