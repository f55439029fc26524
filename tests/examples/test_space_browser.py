"""The app in `examples/space` as its visitors meet it: in a real browser, headless Chromium, driven by Playwright."""

import json
import os
import re
import time

import PIL.Image
import pytest
from helpers.browser import browser as browser
from helpers.browser import needs_browser
from helpers.space import DIGITS
from helpers.space import address as address
from helpers.space import app as app
from helpers.space import network_calls as network_calls


playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
pytestmark = [needs_browser, pytest.mark.slow]

PATIENCE = 60_000  # milliseconds: two cores may have other work
ONE = [(0.5, 0.2), (0.5, 0.8)]
TWO = [(0.35, 0.35), (0.4, 0.24), (0.5, 0.2), (0.6, 0.24), (0.64, 0.35), (0.45, 0.62), (0.35, 0.78), (0.68, 0.78)]


@pytest.fixture
def visitor(browser, address):
    """Opens the page for one more visitor."""
    contexts = []

    def open_page(**settings):
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 1000}, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.wait_for_selector("#sketch button[aria-label='Color']", state="attached")  # the brush is taken
        page.wait_for_timeout(500)
        return page

    yield open_page
    for context in contexts:
        context.close()


def draw(page, points):
    """One stroke, in shares of the sketchpad's width and height."""
    page.evaluate("window.scrollTo(0, 0)")
    box = page.locator("#sketch canvas").first.bounding_box()
    side = 270  # of the white square in its middle
    x0, y0 = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    page.mouse.move(x0 + side * points[0][0], y0 + side * points[0][1])
    page.mouse.down()
    for x, y in points[1:]:
        page.mouse.move(x0 + side * x, y0 + side * y, steps=8)
    page.mouse.up()
    page.wait_for_timeout(500)


def want(page, radius, copies):
    page.locator("#settings button").first.click()
    page.wait_for_timeout(500)  # sliders that have just come to sight may miss what is typed
    for name, value in (("wanted", radius), ("copies", copies)):
        number, slider = (page.locator(f"#{name} input[type={kind}]") for kind in ("number", "range"))
        number.fill(str(value))
        number.press("Tab")
        playwright.expect(slider).to_have_value(f"{value:g}")


def shows(page, element, words):
    """Waits for the words in an element; its text."""
    playwright.expect(page.locator(element)).to_contain_text(re.compile(words), timeout=PATIENCE)
    return page.inner_text(element)


def radius_of(page):
    return float(re.search(r"radius (\d\.\d+)", page.inner_text("#status"))[1])


def test_a_drawn_digit_is_certified_stopped_downloaded_and_verified(visitor, tmp_path):
    page = visitor()
    want(page, 2.0, 2000)
    draw(page, ONE)
    page.click("#certify")
    shows(page, "#status", r"1: proved within radius 0\.")
    first = radius_of(page)
    playwright.expect(page.locator("#status")).not_to_contain_text(f"{first:.3f}", timeout=PATIENCE)
    assert radius_of(page) > first
    assert page.locator("#figure img").count() == page.locator("#shown img").count() == 1
    page.click("#stop")
    playwright.expect(page.locator("#certify")).to_be_enabled()
    page.wait_for_timeout(500)
    stopped = radius_of(page)
    with page.expect_download() as download:
        page.click("#download a")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    record = json.loads(path.read_text())
    assert record["label"] == 1 and abs(record["radius"] - stopped) <= 0.0005 and record["n"] < 2000
    page.wait_for_timeout(1000)
    assert radius_of(page) == stopped

    page.get_by_role("tab", name="Verify").click()
    page.set_input_files("#file input[type=file]", path)
    shows(page, "#verdict", rf"Valid\. Class 1 and radius {record['radius']:.4f}")
    page.locator("#file button[aria-label='Clear']").click()
    playwright.expect(page.locator("#verdict")).not_to_contain_text("Valid")
    path.write_text(json.dumps({**record, "radius": 3.0}))
    page.set_input_files("#file input[type=file]", path)
    shows(page, "#verdict", r"Not valid\. The file says .*radius 3.0")

    page.get_by_role("tab", name="Compare").click()
    shows(page, "#table", rf"Your certificate's radius, {stopped:.3f}")


@pytest.mark.parametrize("kind", ["corrupt", "oversized", "huge"])
def test_a_bad_upload_gets_a_message_and_the_page_goes_on(visitor, tmp_path, capfd, kind):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture" if kind == "corrupt" else os.urandom(6_000_000))
    if kind == "huge":
        PIL.Image.new("1", (13_000, 13_000)).save(bad)
    words = {"corrupt": "not a picture", "oversized": "maximum allowed size", "huge": "more than 16 million pixels"}
    page = visitor()
    page.get_by_role("tab", name="Upload or sample").click()
    page.set_input_files("#picture input[type=file]", bad)
    shows(page, ".toast-wrap", words[kind])
    page.locator("#samples button img").nth(1).click()
    playwright.expect(page.locator("#preview img")).to_be_visible()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_nothing_chosen_is_a_message_and_then_an_upload_and_a_sample_are_certified(visitor):
    page = visitor()
    want(page, 0.2, 100)
    page.click("#certify")
    shows(page, ".toast-wrap", "The picture is empty")
    playwright.expect(page.locator("#certify")).to_be_enabled()
    page.get_by_role("tab", name="Upload or sample").click()
    page.set_input_files("#picture input[type=file]", DIGITS[0])
    playwright.expect(page.locator("#preview img")).to_be_visible()
    page.click("#certify")
    shows(page, "#status", "0: proved")
    playwright.expect(page.locator("#certify")).to_be_enabled(timeout=PATIENCE)
    page.locator("#samples button img").nth(1).click()
    page.click("#certify")
    shows(page, "#status", r"1: proved within radius 0\.2[\s\S]*The radius you want is proved")


def test_two_visitors_at_once_and_one_of_them_stops(visitor):
    pages = [visitor(), visitor()]
    for page, digit, radius in zip(pages, (ONE, TWO), (2.0, 0.2), strict=True):
        want(page, radius, 2000)
        draw(page, digit)
    for page in pages:
        page.click("#certify")
    for page in pages:
        shows(page, "#status", "noisy copies")
    pages[0].click("#stop")
    playwright.expect(pages[0].locator("#certify")).to_be_enabled()
    assert "2: proved" in shows(pages[1], "#status", "The radius you want is proved")
    stopped = pages[0].inner_text("#status")
    assert "1: proved" in stopped and "The radius you want" not in stopped


def test_the_work_of_a_visitor_who_leaves_stops(visitor, network_calls):
    page = visitor()
    want(page, 2.0, 2000)
    draw(page, ONE)
    page.click("#certify")
    shows(page, "#status", "noisy copies")
    page.close()
    seen, end = None, time.monotonic() + PATIENCE / 1000
    while seen != network_calls["all"]:
        assert time.monotonic() < end, "the work goes on"
        seen = network_calls["all"]
        time.sleep(2)
    assert seen > 0


def test_a_phone_shows_the_page_in_its_width(visitor, browser):
    page = visitor(is_mobile=True, has_touch=True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
