"""The page in a real browser: every plot is drawn and the script raises nothing. Needs chromium; skipped without it."""

import re
import shutil
import subprocess

import pytest

from hwsim.report.page import write_page

BROWSER = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")]


def dump(path, profile):
    """The page's document after its scripts ran, without any network; and what the console said."""
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}",
            "--window-size=1200,9000", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_every_plot_is_drawn_and_nothing_is_raised(tmp_path, build, section):
    path = write_page(build(sections=[section]), tmp_path)
    document, console = dump(path, tmp_path / "profile")
    assert console == []
    places = re.findall(r'<div class="plot[^>]*data-drawing[^>]*>', document)
    hidden = document.count('data-choice="') - 1  # the chooser shows one pair of plots and hides the others
    assert len(places) > 20
    assert sum('data-drawn="yes"' in place for place in places) == len(places) - 2 * hidden
    assert document.count('class="main-svg"') >= sum("data-drawn" in place for place in places)


def test_a_broken_script_is_noticed(tmp_path, build):
    path = write_page(build(), tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("const drawings = JSON.parse", "const drawings = JSON.pars"), encoding="utf-8")
    document, console = dump(path, tmp_path / "profile")
    assert console != []
    assert 'data-drawn="yes"' not in document
