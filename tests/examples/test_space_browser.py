"""The app in `examples/space` as its visitors meet it: in a real browser, headless Chromium, driven by Playwright."""

import json
import os
import re
import time

import PIL.Image
import pytest
from helpers.browser import PATIENCE, needs_browser
from helpers.browser import browser as browser
from helpers.space import DIGITS
from helpers.space import address as address
from helpers.space import network_calls as network_calls
from helpers.space import site as site


playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
pytestmark = [needs_browser, pytest.mark.slow]

ONE = [(0.5, 0.2), (0.5, 0.8)]
TWO = [(0.35, 0.35), (0.4, 0.24), (0.5, 0.2), (0.6, 0.24), (0.64, 0.35), (0.45, 0.62), (0.35, 0.78), (0.68, 0.78)]


@pytest.fixture
def visitor(browser, address):
    """Opens the page for one more visitor, on the tab of samples or of drawing."""
    contexts = []

    def open_page(draws=False, link="", **settings):
        settings = {"viewport": {"width": 1280, "height": 900}, **settings}
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}{link}")
        page.wait_for_selector("#sample-preview img")
        if draws:
            page.get_by_role("tab", name="Draw").click()
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
    page.wait_for_timeout(1000)  # the stroke is on its way


def set_number(page, name, value):
    """Type a number until its slider has it: one that has just come to sight may miss what is typed."""
    number, slider = (page.locator(f"#{name} input[type={kind}]") for kind in ("number", "range"))
    end = time.monotonic() + PATIENCE / 1000
    while slider.input_value() != f"{value:g}":
        assert time.monotonic() < end, f"{name} stays {slider.input_value()}"
        number.fill(str(value))
        number.press("Tab")
        page.wait_for_timeout(500)


def want(page, radius, copies):
    """Sets the radius to prove and the number of copies, with a noise of 0.25."""
    set_number(page, "wanted", radius)
    page.locator("#settings button").first.click()
    page.locator("#own input").check()
    set_number(page, "copies", copies)


def shows(page, element, words):
    """Waits for the words in an element; its text."""
    playwright.expect(page.locator(element)).to_contain_text(re.compile(words))
    return page.inner_text(element)


def radius_of(page):
    return float(re.search(r"radius (\d\.\d+)", page.inner_text("#status"))[1])


def enabled(page, *names):
    """Waits until buttons can be pressed."""
    for name in names:
        playwright.expect(page.locator(name)).to_be_enabled(timeout=PATIENCE)


def test_the_page_opens_on_a_growing_proof_which_is_attacked_and_sized(visitor):
    page = visitor()
    shows(page, "#status", r"4: proved within radius 0\.")
    assert page.locator("#figure svg").count() == 1 and page.locator("#shown img").count() == 9
    first = radius_of(page)
    enabled(page, "#attack")  # the opening run has ended
    page.wait_for_timeout(500)
    proved = radius_of(page)
    assert proved >= max(first, 0.45)
    page.get_by_text("What the radius means").click()
    assert page.get_by_text("This is proved, and wrong with a probability").is_visible()

    page.click("#attack")
    shows(page, "#attempts", "attacking: step")
    shows(page, "#attempts", r"just inside the radius[\s\S]*✓ kept: 4[\s\S]*1\.5 × the radius")
    page.click("#stop")
    enabled(page, "#attack", "#certify")
    assert "fell" not in page.inner_text("#attempts") and radius_of(page) == proved
    set_number(page, "size", 2)
    shows(page, "#size-words", r"2 times the radius 0\.[\s\S]*Nothing is proved out here")
    playwright.expect(page.locator("#changed img")).to_have_count(3)

    set_number(page, "wanted", 0.9)
    shows(page, "#noise", r"sigma 0\.5 \(chosen for this radius before any vote\)")

    page.get_by_role("tab", name="Runs").click()
    frame = page.frame_locator("#runs iframe")
    playwright.expect(frame.locator("#curves svg").first).to_be_visible(timeout=PATIENCE)
    assert "sigma-0.25" in frame.locator("#runs").inner_text()
    shows(page, "#table", rf"Your certificate's radius, {proved:.3f}")


def test_a_drawn_digit_is_certified_stopped_downloaded_and_verified(visitor, tmp_path):
    page = visitor(draws=True)
    want(page, 2.0, 2000)
    draw(page, ONE)
    page.click("#certify")
    shows(page, "#status", r"1: proved within radius 0\.")
    first = radius_of(page)
    playwright.expect(page.locator("#status")).not_to_contain_text(f"{first:.3f}")
    assert radius_of(page) > first
    page.click("#stop")
    enabled(page, "#certify")
    page.wait_for_timeout(500)
    stopped = radius_of(page)
    with page.expect_download() as download:
        page.click("#download a")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    record = json.loads(path.read_text())
    assert record["label"] == 1 and 0 <= record["radius"] - stopped < 0.001 and record["n"] < 2000
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


def test_bad_uploads_get_a_message_and_the_page_goes_on(visitor, tmp_path, capfd):
    bad = tmp_path / "bad.png"
    page = visitor()
    page.click("#stop")
    page.get_by_role("tab", name="Upload").click()
    words = {"corrupt": "not a picture", "oversized": "maximum allowed size", "huge": "more than 16 million pixels"}
    for kind, message in words.items():
        bad.write_bytes(b"no picture" if kind == "corrupt" else os.urandom(6_000_000))
        if kind == "huge":
            PIL.Image.new("1", (13_000, 13_000)).save(bad)
        page.set_input_files("#picture input[type=file]", bad)
        shows(page, ".toast-wrap", message)
        clear = page.locator("#picture button[aria-label='Clear']")
        if clear.count():
            clear.dispatch_event("click")
    page.set_input_files("#picture input[type=file]", DIGITS[0])
    playwright.expect(page.locator("#preview img")).to_be_visible()
    want(page, 0.2, 100)
    page.click("#certify")
    shows(page, "#status", "0: proved")
    assert "Traceback" not in "".join(capfd.readouterr())


def test_nothing_drawn_is_a_message_and_then_a_sample_is_certified(visitor):
    page = visitor(draws=True)
    want(page, 0.2, 100)
    page.click("#certify")  # which stops the opening run
    shows(page, ".toast-wrap", "The picture is empty")
    shows(page, "#status", "Choose a picture and press Certify")
    enabled(page, "#certify")
    assert "4: " not in page.inner_text("#status")
    page.get_by_role("tab", name="Sample").click()
    page.locator("#samples button img").nth(1).click()
    page.wait_for_timeout(1000)
    page.click("#certify")
    shows(page, "#status", r"1: proved within radius 0\.2[\s\S]*The radius you want is proved")


def test_two_visitors_at_once_and_one_of_them_stops(visitor):
    pages = [visitor(draws=True), visitor(draws=True)]
    for page, digit, radius in zip(pages, (ONE, TWO), (2.0, 0.2), strict=True):
        want(page, radius, 2000)
        draw(page, digit)
    for page in pages:
        page.click("#certify")
    for page in pages:
        shows(page, "#status", r"[12]: [\s\S]*noisy copies")
    pages[0].click("#stop")
    enabled(pages[0], "#certify")
    assert "2: proved" in shows(pages[1], "#status", "The radius you want is proved")
    stopped = pages[0].inner_text("#status")
    assert "1: proved" in stopped and "The radius you want" not in stopped


def test_the_work_of_a_visitor_who_leaves_stops(visitor, network_calls):
    page = visitor(draws=True)
    want(page, 2.0, 2000)
    draw(page, ONE)
    page.click("#certify")
    shows(page, "#status", r"1: [\s\S]*noisy copies")
    page.close()
    seen, end = None, time.monotonic() + PATIENCE / 1000
    while seen != network_calls["all"]:
        assert time.monotonic() < end, "the work goes on"
        seen = network_calls["all"]
        time.sleep(2)
    assert seen > 0


def test_a_link_to_a_folder_is_refused_and_the_page_opens_all_the_same(visitor):
    page = visitor(link="?model=/etc")
    shows(page, "#about", "A link may only name a model on the Hugging Face Hub")
    shows(page, "#status", "4: ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_first_figure_in_its_width_and_height(visitor, scheme):
    viewport = {"width": 390, "height": 844}
    page = visitor(viewport=viewport, is_mobile=True, has_touch=True, color_scheme=scheme)
    box = page.wait_for_selector("#figure svg").bounding_box()
    assert box["y"] + box["height"] <= 844 and box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    back = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (sum(map(int, back[:3])) < 150) == (scheme == "dark")


def test_the_keyboard_reaches_what_matters_and_the_focus_is_seen(visitor):
    page = visitor()
    seen, outlined = [], True
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => { const e = document.activeElement; const s = getComputedStyle(e);
                return [e.closest("[id]")?.id ?? "", e.tagName, s.outlineStyle + s.outlineWidth]; }"""
        )
        seen.append(found[0])
        outlined = outlined and found[2] == "solid3px"
        if "attack" in seen or "size" in seen:
            break
    wanted = [name for name in ("samples", "wanted", "certify", "size") if name in " ".join(seen)]
    assert wanted and outlined, seen
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input:not([type=file]), button, iframe")].filter((e) => e.offsetParent
            && !e.labels?.length && !e.getAttribute("aria-label") && !e.textContent.trim() && !e.title
            && !e.querySelector("img[alt]")).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert not unnamed
