"""The pages in a headless Chromium: from disk, and in MLflow's artifact view."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.samples.results_samples import small

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
    --disable-sync
""".split()  # noqa: SIM905
SCREENSHOTS = Path(__file__).parents[3] / "ci-artifacts"
PATIENCE_MS = 120_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    # Imported late: without a browser nobody needs the driver.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page of the size of a laptop's screen; ``page.said`` lists the errors on its console and what it asked for."""
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    opened.set_default_timeout(PATIENCE_MS)
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append(message) if message.type == "error" else None)
    opened.on("pageerror", lambda error: opened.said.append(error))
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def content():
    from tests.samples.report_samples import sampled_content

    return sampled_content()


def plots_drawn(frame) -> dict[str, int]:
    """Plot -> number of shapes in it that stand for data, once all are drawn."""
    frame.wait_for_selector("body[data-drawn=yes]", state="attached")
    return frame.evaluate(
        """() => {
            const seen = mark => Math.max(mark.getBoundingClientRect().width, mark.getBoundingClientRect().height) > 1;
            const marks = plot => [...plot.querySelectorAll(".mlayer path, .mlayer image")].filter(seen).length;
            return Object.fromEntries([...document.querySelectorAll(".plot[id]")].map(plot => [plot.id, marks(plot)]));
        }"""
    )


def names_of(content) -> set[str]:
    return {f"{section}-{name}" for section, plots in content.figures.items() for name in plots}


def source_of(said) -> str:
    """Where an error on the console came from."""
    return said.location.get("url", "") if hasattr(said, "location") else str(said)


@pytest.mark.slow
def test_the_report_opens_in_the_artifact_view(tracking, page, content):
    import mlflow

    from calmlflow.results.plots.common import headline_figures
    from calmlflow.results.report.training import report_html

    mlflow.set_experiment("browser")
    with mlflow.start_run(run_name="main") as run:
        mlflow.log_text(report_html(content), "report.html")
        mlflow.log_figure(headline_figures(small("mem_bin"))["confusion"], "plots/mem_bin/confusion.png")

    page.goto(f"{tracking.tracking_uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    page.get_by_role("tab", name="Artifacts").click()
    # MLflow's assistant would take a third of the screen.
    page.get_by_role("button", name="Close").first.click()
    page.get_by_text("report.html").first.click()
    frame = page.wait_for_selector("iframe.mlflow-html-iframe").content_frame()
    drawn = plots_drawn(frame)
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "report-in-mlflow.png")

    assert frame.locator("h1").inner_text() == content.title
    assert "No champion" in frame.locator(".verdict").inner_text()
    assert set(drawn) == names_of(content)
    assert not [name for name, marks in drawn.items() if marks == 0]
    # Errors of the MLflow UI itself are not ours; those of the page in its frame come from a blob.
    ours = [said for said in page.said if source_of(said).startswith("blob:") or not hasattr(said, "location")]
    assert not [getattr(said, "text", said) for said in ours]

    page.get_by_text("plots", exact=True).first.click()
    page.get_by_text("mem_bin", exact=True).first.click()
    page.get_by_text("confusion.png").first.click()
    page.wait_for_function(
        """() => [...document.querySelectorAll("img, image")].some(image =>
            `${image.src || image.href?.baseVal}`.startsWith("blob:") && image.getBoundingClientRect().height > 200)"""
    )
    page.screenshot(path=SCREENSHOTS / "png-in-mlflow.png")


def test_the_report_opens_from_disk_without_a_network(browser, page, content, tmp_path):
    from calmlflow.results.report.training import report_html

    (tmp_path / "report.html").write_text(report_html(content), encoding="utf-8")
    page.context.set_offline(True)
    SCREENSHOTS.mkdir(exist_ok=True)
    for width in (320, 390, 602, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((tmp_path / "report.html").as_uri())
        drawn = plots_drawn(page)
        page.screenshot(path=SCREENSHOTS / f"report-from-disk-{width}.png", full_page=True)
        # Nothing is wider than the page, so nothing is cut.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # No word of the first two columns is cut into letters, and the table scrolls beside them.
        name, better = page.evaluate(
            "[0, 1].map(n => Math.min(...[...document.querySelectorAll('.scores tr:not(.target)')]"
            ".filter(row => row.getBoundingClientRect().width).map(row => row.cells[n].getBoundingClientRect().width)))"
        )
        assert 120 < name <= 0.6 * width and better > 50
    assert set(drawn) == names_of(content)
    assert not [name for name, marks in drawn.items() if marks == 0]
    assert not [getattr(said, "text", said) for said in page.said]
    assert set(page.asked) == {(tmp_path / "report.html").as_uri()}
    # A point tells the job's name.
    worst = page.locator("#wallclock-predicted_against_actual .scatterlayer .points path").first
    worst.scroll_into_view_if_needed()
    worst.hover(force=True)
    page.wait_for_selector("#wallclock-predicted_against_actual .hoverlayer .hovertext")
    text = page.locator("#wallclock-predicted_against_actual .hovertext").first.text_content()
    assert text.split()[0] in set(content.jobs["ipst"])


def test_a_comparison_opens_from_disk_and_keeps_its_plots_when_the_window_changes(page, tmp_path):
    from calmlflow.results.report.comparison import comparison_html
    from tests.samples.comparison_samples import sampled_comparison

    content = sampled_comparison()
    path = tmp_path / "comparison.html"
    path.write_text(comparison_html(content), encoding="utf-8")
    page.context.set_offline(True)
    page.goto(path.as_uri())
    drawn = plots_drawn(page)
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "comparison-from-disk.png", full_page=True)
    assert set(drawn) == {"differences-mem_bin", "differences-memory"}
    # A dot and a whisker for every score, but for those that share a whisker's colour.
    assert all(drawn[f"differences-{target}"] > len(held.scores) for target, held in content.comparisons.items())
    # Once the drawings are as wide as their places; the page forbids what playwright's own wait for a condition does.
    heights = """() => new Promise(resolve => {
        const drawings = [...document.querySelectorAll(".plot .main-svg")];
        const fits = drawing => drawing.clientWidth === drawing.closest(".plot").clientWidth;
        const look = () => drawings.every(fits)
            ? resolve(drawings.map(drawing => drawing.clientHeight)) : requestAnimationFrame(look);
        look();
    })"""
    before = page.evaluate(heights)
    for width in (700, 1000):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(heights) == before
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not [getattr(said, "text", said) for said in page.said]
    assert page.asked == [path.as_uri()]


def test_predictions_against_jobs_are_readable_on_a_narrow_page(page, tmp_path):
    from calmlflow.results.report.realised import realised_html
    from tests.samples.realised_samples import sampled_realised

    path = tmp_path / "realised.html"
    path.write_text(realised_html(sampled_realised(600)), encoding="utf-8")
    page.context.set_offline(True)
    SCREENSHOTS.mkdir(exist_ok=True)
    for width in (320, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(path.as_uri())
        drawn = plots_drawn(page)
        page.screenshot(path=SCREENSHOTS / f"realised-from-disk-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert set(drawn) == {"lost", "excess", "coverage"}
    assert all(drawn.values())
    assert not [getattr(said, "text", said) for said in page.said]
    assert set(page.asked) == {path.as_uri()}
