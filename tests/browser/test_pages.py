"""The report and the dashboard in a real browser."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cvaeopt.outcome import report
from cvaeopt.outcome.page import PAGE
from tests.support import chromium
from tests.support.command import Shop
from tests.support.made_up import BASELINES, NOON, ablation, definition, retrained_folder, run_folder, trials
from tests.support.waiting import LONG_S, until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium.start()


@pytest.fixture(scope="module")
def shop(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A tiny study that was really searched, with its report; not made where there is no browser to look at it."""
    made = Shop.new(tmp_path_factory.mktemp("shop") / "shop")
    assert made.run("worker", "--study", "tiny").code == 0
    assert made.run("report", "--study", "tiny", "--out", "report").code == 0
    return made


@pytest.fixture(scope="module")
def pages(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a real study, of none, of one with everything that a page can have, and of a comparison."""
    root = tmp_path_factory.mktemp("pages")
    found = {"searched": shop.root / "report" / PAGE}
    shown = trials(40)
    best = max((one for one in shown if one.value is not None), key=lambda one: one.value)
    run_folder(root / "artifacts", best)
    retrained_folder(root / "retrain/made-up-500", best)
    compared, grid = ablation(root / "grid")
    studies = {"none": (definition(), []), "all": (definition(), shown), "compared": (compared, grid)}
    for name, (study, those) in studies.items():
        overview = {"storage": "sqlite:///x.db", "baselines": BASELINES, "stopped": None}
        artifacts = root / "grid" if name == "compared" else root / "artifacts"
        found[name] = report.write(study, those, overview, root / name, artifacts=artifacts, now=NOON).page
    return found


@pytest.mark.parametrize("name", ["searched", "none", "all", "compared"])
def test_a_report_shows_everything_and_asks_nobody(browser: Any, pages: dict[str, Path], name: str) -> None:
    for width in (1280, 390):
        with chromium.visit(browser, width=width) as seen:
            seen.page.goto(pages[name].as_uri())
            assert seen.page.title().startswith("Study ")
            assert seen.page.locator("img").count() >= 6
            assert seen.broken_pictures() == []
            assert seen.complaints == []
            assert seen.requests == [pages[name].as_uri()]
            assert seen.overflow_px() <= 0


@pytest.mark.parametrize("name", ["searched", "none", "all", "compared"])
def test_a_report_has_no_barriers_by_day_by_night_or_on_paper(browser: Any, pages: dict[str, Path], name: str) -> None:
    for width, dark in ((1280, False), (390, False), (1280, True)):
        with chromium.visit(browser, width=width, dark=dark) as seen:
            seen.page.goto(pages[name].as_uri())
            assert seen.barriers() == []
            if dark:
                night = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
                seen.page.emulate_media(media="print", color_scheme="dark")
                assert seen.barriers() == []
                assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") != night


def test_the_page_of_a_run_and_a_comparison_are_as_good(browser: Any, shop: Shop, tmp_path: Path) -> None:
    """The pages are those of a run, and of two runs beside a study."""
    best = trials(1)[0]
    runs = [retrained_folder(tmp_path / name, best).root for name in ("main-500", "wide-500")]
    assert shop.run("report", runs[0], "--out", tmp_path / "one").code == 0
    assert shop.run("report", *runs, "--study", "tiny", "--out", tmp_path / "several").code == 0
    for name, pictures in (("one", 13), ("several", 3)):
        address = (tmp_path / name / PAGE).as_uri()
        for width, dark in ((1280, False), (390, False), (1280, True)):
            with chromium.visit(browser, width=width, dark=dark) as seen:
                seen.page.goto(address)
                assert seen.page.locator("img").count() == pictures
                assert (seen.broken_pictures(), seen.complaints, seen.barriers()) == ([], [], [])
                assert seen.requests == [address]
                assert seen.overflow_px() <= 0


def test_the_rules_find_what_is_wrong(browser: Any) -> None:
    """A page with every fault: without this, a rule that never fires would go unnoticed."""
    with chromium.visit(browser) as seen:
        seen.page.set_content(
            """<body><h3>a</h3><img src="data:," alt="x"><table><tr><td>1<td>2<tr><td>1</table><section></section>
            <a href="#"></a><input><p id="a"></p><p id="a" style="color: #999; background: #fff">pale</p>
            <p style="font-size: 8px">small</p><dt>alone</dt>
            <div style="overflow: auto; width: 50px"><pre>long long long long</pre></div>"""
        )
        said = "\n".join(seen.barriers())
        for what in (
            "no language", "no title", "<main>", "<h1>", "viewport", "heading 3 after 0", "undescribed",
            "table without caption", "table without header", "1 cells under 2", "unnamed region", "unnamed control",
            "unlabelled field", "two elements are #a", "contrast 2.85", "letters of 8 px", "outside of a list",
            "not by keyboard",
        ):  # fmt: skip
            assert what in said, what
        assert seen.broken_pictures() and seen.overflow_px() <= 0
        seen.page.set_content("<div style='width: 5000px'>wide</div><img src='http://127.0.0.1:9/x.png'>")
        assert seen.overflow_px() > 0
        assert any("failed" in one for one in seen.complaints) and len(seen.requests) == 1


def test_the_filmstrip_moves_without_a_script_and_paper_has_its_three_frames(
    browser: Any, pages: dict[str, Path]
) -> None:
    with chromium.visit(browser, width=390) as seen:
        seen.page.goto(pages["all"].as_uri())
        strip = seen.page.locator(".strip")
        assert strip.evaluate("strip => strip.scrollLeft") == 0
        seen.page.get_by_role("link", name="worst frame").click()
        seen.page.wait_for_function("document.querySelector('.strip').scrollLeft > 0")
        worst = seen.page.locator(".strip figure", has_text="worst:")
        assert worst.evaluate("f => f.getBoundingClientRect().left >= 0 && f.getBoundingClientRect().right <= 390")
        seen.page.emulate_media(media="print")
        assert [one.is_visible() for one in strip.locator("figure").all()].count(True) == 3


def test_a_report_prints_on_a_few_sheets(browser: Any, pages: dict[str, Path]) -> None:
    with chromium.visit(browser) as seen:
        seen.page.goto(pages["all"].as_uri())
        paper = seen.page.pdf(format="A4")
    sheets = len(re.findall(rb"/Type\s*/Page\b", paper))
    assert paper.startswith(b"%PDF") and 3 <= sheets <= 12


@pytest.fixture(scope="module")
def dashboard(shop: Shop) -> Iterator[str]:
    """The address of `cvaeopt dashboard`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "cvaeopt.cli", "dashboard", "--study", "tiny", "--port", str(port), "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, cwd=shop.root, env=environment, stderr=subprocess.DEVNULL) as serving:
        address = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api/studies", timeout=LONG_S).close()
                return True
            return False

        until(answers, serving)
        yield address
        serving.terminate()


def test_the_dashboard_lists_the_study_and_shows_a_trials_picture_gif_and_note(
    browser: Any, shop: Shop, dashboard: str
) -> None:
    with chromium.visit(browser) as seen:
        page = seen.page
        page.goto(dashboard)
        page.get_by_text("tiny").first.click()
        page.get_by_text("Best Trial (number=").wait_for()
        page.get_by_role("link", name="Note").click()
        page.get_by_text("Best so far: ").wait_for()
        page.get_by_text("what you write below it stays").wait_for()
        page.get_by_role("heading", name="Best so far").get_by_role("link").click()  # to the best trial
        page.get_by_role("heading", name=re.compile(r"Trial \d")).wait_for()
        page.get_by_text("The best trial of the study so far").wait_for()
        page.get_by_text(re.compile("after 1 of 1 epochs: all epochs trained")).wait_for()
        for picture in ("curves.png", "psnr_per_frame.png", "worst_frames.png", "prediction.gif"):
            assert page.locator(f"img[alt='{picture}']").count() == 1, picture
        assert seen.broken_pictures() == []
        for file in ("config.json", "history.jsonl"):
            assert page.get_by_text(file).count() == 1
        assert all(url.startswith(dashboard) for url in seen.requests)
        assert seen.complaints == []
