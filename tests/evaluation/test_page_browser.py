"""The page of a run as its readers meet it: from the disk, in headless Chromium, driven by Playwright."""

import base64
import io
import re

import PIL.Image
import pytest
from helpers.browser import browser as browser
from helpers.browser import needs_browser
from helpers.runs import HOSTILE, make_run

from diffusers_ndc.evaluation.figures import Report
from diffusers_ndc.evaluation.page import write_page
from diffusers_ndc.evaluation.paired import Paired


playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
pytestmark = [needs_browser, pytest.mark.slow]

MANY = [(label % 3, label % 3, 50 + label % 51, 100 + label, 0.5) for label in range(120)]


def picture(value):
    file = io.BytesIO()
    PIL.Image.new("L", (8, 8), value).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    clean = {"index": 0, "image_hash": None, "label": 0, "predicted": 0, "evaluations": 9, "seconds": None}
    make_run(folder / "clean", [], [clean], alpha=None, n=None, sigma=0.0, radii=[0.0])
    make_run(folder / "few", stop_early=True)
    make_run(folder / "many", MANY)
    return [Report.from_folder(folder / name) for name in ("clean", "few", "many")]


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens the page of some runs from the disk; it may ask for nothing, and its scripts may not fail."""
    contexts, faults = [], []

    def open_it(reports, thumbnails=(), width=1200, **settings):
        write_page(reports, tmp_path / "report.html", thumbnails)
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **settings))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not [fault for fault in faults if "favicon" not in fault]


def column(page, table, number):
    return page.locator(f"#{table} tbody tr > :nth-child({number})").all_inner_texts()


def test_the_curve_tells_its_value_under_the_pointer_and_the_keys(open_page, reports):
    page = open_page(reports)
    svg, told = page.locator("#radius-chart .chart"), page.locator("#radius-chart .legend")
    assert "radius 0.25" in told.inner_text() and "50.0%" in told.inner_text()
    svg.hover(position={"x": 48, "y": 100})  # the left end of the curves
    low, high = reports[1].at(0).interval
    assert "radius 0\t" in told.inner_text() and "66.7%" in told.inner_text()
    assert f"{100 * low:.1f} to {high:.1%}" in told.inner_text()
    svg.press("End")
    assert "not sought" in told.inner_text() and "0 of 120" in told.inner_text()
    assert told.inner_text().count("not sought") == 2
    svg.press("Home")
    svg.press("PageUp")
    svg.press("ArrowRight")
    radius = float(svg.get_attribute("aria-valuenow"))
    assert radius > 0 and f"many {reports[2].at(radius).value:.1%}" in svg.get_attribute("aria-valuetext")
    assert svg.locator(".curve").count() == 3
    told.get_by_role("button", name="many").click()
    assert svg.locator(".curve").count() == 2


def test_the_lower_bound_tells_its_value(open_page, reports):
    page = open_page(reports)
    svg = page.locator("#p-lower-chart .chart")
    share = sum(share.count for low, _, share in reports[2].p_lower_bins if low >= 0.9) / 120
    assert "p_A ≥ 0.900: few" in svg.get_attribute("aria-valuetext")
    assert f"many {share:.1%}" in svg.get_attribute("aria-valuetext")


def test_images_are_sorted_by_mouse_and_keyboard_and_turned_page_by_page(open_page, reports):
    page = open_page(reports)
    page.select_option("#image-run", label="few")
    head = page.locator("#image-table th", has_text="radius")
    head.get_by_role("button").click()
    radii = [float(text) for text in column(page, "image-table", 5)]
    assert radii == sorted(radii, reverse=True) and radii[0] > 0.5 and head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").press("Enter")
    assert (
        column(page, "image-table", 5)
        == [str(int(radius)) if radius == 0 else f"{radius:g}" for radius in radii][::-1]
    )
    page.select_option("#image-run", label="many")
    pager = page.locator("#image-table .pager")
    assert "1 to 50 of 120 images" in pager.inner_text() and len(column(page, "image-table", 1)) == 50
    for _ in range(2):
        pager.get_by_role("button", name="Next").click()
    assert "101 to 120 of 120" in pager.inner_text() and column(page, "image-table", 1)[-1] == "119"
    assert pager.get_by_role("button", name="Next").is_disabled()


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"verdict": "abstained"}, ["4"]),
        ({"verdict": "wrong"}, ["3"]),
        ({"verdict": "certified at 0.25"}, ["0", "1", "5"]),
        ({"verdict": "correct, not certified at 0.25"}, ["2"]),
        ({"true-class": "one"}, ["2", "3", "4"]),
        ({"true-class": "one", "predicted-class": "two"}, ["3"]),
    ],
)
def test_images_are_filtered(open_page, reports, filters, found):
    page = open_page(reports[1:2])
    for name, label in filters.items():
        page.select_option(f"#{name}", label=label)
    assert column(page, "image-table", 1) == found
    page.click("#all-images")
    page.fill("#index", "2")
    assert column(page, "image-table", 1) == ["2"]


def test_two_runs_are_compared_with_the_counts_and_p_values_of_python(open_page, reports):
    page = open_page(reports)
    page.select_option("#first", label="many")
    page.select_option("#second", label="few")
    paired = Paired(reports[2], reports[1])
    for position, radius in enumerate([0, 0.25, 0.5]):
        page.locator("#radius").fill(str(position))
        counts = paired.at(radius)
        expected = [counts.both, counts.only_first, counts.only_second, counts.neither]
        assert page.locator("#compare-result .four b").all_inner_texts() == [str(count) for count in expected]
        assert page.locator("#compare-radius").inner_text() == f"{radius:g}"
        assert f"p = {counts.p_value:.3g}." in page.locator(".p-value").inner_text()
        lists = page.locator("#compare-result .lists > div")
        assert [lists.nth(k).locator(".chip").count() for k in (0, 1)] == expected[1:3]
    page.locator("#compare-result .chip").first.click()
    assert len(column(page, "image-table", 1)) == 1
    page.select_option("#first", label="clean")
    assert page.locator("#radius").is_disabled() and "0 images" in page.locator("#compare-basis").inner_text()


def test_classes_have_the_figures_of_the_report(open_page, reports):
    page = open_page(reports)
    page.select_option("#class-run", label="few")
    assert column(page, "class-table", 1) == ["7", "one", "zero"]
    for number, radius in enumerate(reports[1].radii):
        by_name = {only.name: f"{only.at(radius).value:.1%}" for only in reports[1].classes.values()}
        found = dict(zip(column(page, "class-table", 1), column(page, "class-table", 3 + number), strict=True))
        assert {name: text.strip() for name, text in found.items()} == by_name


def test_thumbnails_are_shown(open_page, reports):
    page = open_page(reports[1:2], [{index: picture(40 * index) for index in range(5)}])
    shown = page.locator("#image-table img")
    assert shown.count() == 5 and shown.nth(1).get_attribute("alt") == "image 1"
    assert page.evaluate("document.querySelector('#image-table img').naturalWidth") == 8


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_the_page_fits_its_width_with_long_names_too(open_page, reports, tmp_path, width):
    long = Report(
        "runs/" + 30 * "long", {**reports[1].run, "model": 60 * "model"}, *list(vars(reports[1]).values())[2:]
    )
    page = open_page([*reports, long], width=width, is_mobile=width < 1000, has_touch=True)
    page.select_option("#second", index=3)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def luminance(page, what):
    red, green, blue = map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{what}"))[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_page_is_dark_and_light(open_page, reports, scheme):
    page = open_page(reports, color_scheme=scheme)
    back, text = luminance(page, "backgroundColor"), luminance(page, "color")
    assert back < 0.2 < 0.8 < text if scheme == "dark" else text < 0.2 < 0.8 < back


def test_hostile_names_are_shown_and_not_run(open_page, tmp_path):
    images = [(number, number, 100, 1, 1.0) for number in range(len(HOSTILE))]
    make_run(tmp_path / "a<i>&amp;", images, id2label=dict(enumerate(HOSTILE)), model=HOSTILE[0])
    report = Report.from_folder(tmp_path / "a<i>&amp;")
    page = open_page([report, report])
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None and page.locator("body img, body i:not(.bar i)").count() == 0
    assert HOSTILE[2] in column(page, "image-table", 2) and HOSTILE[0] in page.inner_text("#runs")
    assert page.evaluate("byId('image-run').options[0].textContent") == "a<i>&amp;"


def test_without_scripts_the_main_figures_are_there(open_page, reports):
    page = open_page(reports, java_script_enabled=False)
    text = page.locator("#runs").inner_text()
    assert "66.7%" in text and "settings and meaning" in text
    assert page.locator("noscript").is_visible() and not page.locator("#images").is_visible()


def test_runs_with_little_in_them_have_a_page(open_page, reports, tmp_path):
    nothing = Report.from_folder(make_run(tmp_path / "nothing", [], [{"index": 0, "failed": "gone"}]))
    failed = Report.from_folder(make_run(tmp_path / "failed", MANY[49:50]))  # abstains
    for some in ([nothing], [reports[0]], [failed], [reports[0], nothing, failed]):
        page = open_page(some)
        assert page.locator("#curves .legend tbody tr").count() >= 1
        assert page.locator("#compare").is_visible() == (len(some) > 1)
        assert "images" in page.locator("#image-table .pager").inner_text()
        assert "NaN" not in page.locator("body").inner_text()
