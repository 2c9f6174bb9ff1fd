"""The page about runs in a real browser, by clicking and typing: Chromium without a screen.

Debian's packages chromium and chromium-driver, and selenium from PyPI. PAGE_PICTURES=FOLDER keeps a picture of every view.
"""

import os
import shutil
import time
from pathlib import Path

import pytest
from sample_runs import HOSTILE, write_run

from srpo_recipe.inspect.contents import contents
from srpo_recipe.inspect.page import write_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (apt install chromium-driver)"),
]
SHOWN = "</script><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1400,900",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    first, second = write_run(folder / "first"), write_run(folder / "second", steps=4)
    return {
        "one": write_page(folder / "one.html", contents([first], 1000)),
        "two": write_page(folder / "two.html", contents([first, second], 1000)),
    }


class Page:
    """The page in the browser, opened afresh."""

    def __init__(self, browser, path: Path, view: str = ""):
        self.browser = browser
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(f"file://{path}{view}")
        self.wait(lambda _: browser.execute_script("return document.body.dataset.ready === 'true'"))
        browser.execute_script(
            "window.heard = 0; for (const kind of ['input', 'change'])"
            " document.getElementById('filters').addEventListener(kind, () => { window.heard += 1; })"
        )

    def wait(self, condition):
        # the table makes its rows anew when it is scrolled or filtered
        return WebDriverWait(self.browser, 60, ignored_exceptions=[StaleElementReferenceException]).until(condition)

    def sees(self, condition) -> None:
        """Wait for what an event brings: the page hears of a new address a moment after the click that set it."""
        self.wait(lambda _: condition())

    def all(self, css: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str):
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return self.browser.execute_script("return document.querySelector(arguments[0]).textContent", css)

    def view(self) -> list[str]:
        return [part.get_attribute("id") for part in self.all("main > section") if part.is_displayed()]

    def press(self, *keys: str) -> None:
        for key in keys:
            webdriver.ActionChains(self.browser).send_keys(key).perform()

    def type(self, name: str, text: str) -> None:
        self.heard(lambda: self.one(f"#f-{name}").send_keys(text))

    def choose(self, name: str, text: str) -> None:
        self.heard(lambda: Select(self.one(f"#f-{name}")).select_by_visible_text(text))

    def heard(self, change) -> None:
        """Change a filter, and wait until the page has heard of it."""
        before = self.browser.execute_script("return window.heard")
        change()
        self.wait(lambda _: self.browser.execute_script("return window.heard") > before)

    def count(self) -> str:
        return self.text("#count")

    def open(self, **filters: str) -> None:
        """Show the first rollout that the filters find."""
        self.one("nav a[data-view=rollouts]").click()
        self.sees(lambda: self.view() == ["rollouts"])
        for name, value in filters.items():
            (self.choose if name in ("route", "correct", "split", "run") else self.type)(name, value)
        self.wait(self.clicked_first_row)
        self.wait(lambda _: self.view() == ["rollout"])

    def clicked_first_row(self, _) -> bool:
        rows = self.all("#rows .row")
        if rows:
            rows[0].click()
        return bool(rows)

    def errors(self) -> list:
        return [line for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]

    def picture(self, name: str) -> None:
        if folder := os.environ.get("PAGE_PICTURES"):
            self.browser.save_screenshot(f"{folder}/{name}.png")


def test_a_click_on_a_curve_shows_that_steps_rollouts(browser, pages):
    page = Page(browser, pages["one"])
    assert page.view() == ["curves"] and len(page.all("#panels figure")) == 4
    cells = [cell.text for cell in page.all("#runs td")]
    assert cells == ["first", "srpo", "7", "3", "40.0 % [30.0, 90.0]", "70.0 % [30.0, 90.0]"]
    page.picture("curves")
    picture = page.one("#panels figure:nth-child(2) svg")  # step 2 of 1 to 3 is in its middle
    webdriver.ActionChains(browser).move_to_element(picture).click().perform()
    page.sees(lambda: page.view() == ["rollouts"])
    page.sees(lambda: page.one("#f-step").get_attribute("value") == "2" and page.count() == "8 of 32 rollouts")
    assert {row.find_elements(By.TAG_NAME, "span")[1].text for row in page.all("#rows .row")} == {"2"}
    assert not page.errors()


def test_any_metric_can_be_drawn(browser, pages):
    page = Page(browser, pages["one"])
    Select(page.one("#more")).select_by_visible_text("val-aux/sums/acc/mean@4/high")
    assert page.one("#panels figcaption b").text == "val-aux/sums/acc/mean@4/high"


FILTERS = [
    ({"route": "sdpo"}, 18),
    ({"correct": "right"}, 6),
    ({"split": "held-out"}, 8),
    ({"step": "2-3"}, 20),
    ({"step": "-1"}, 12),
    ({"length": "12"}, 24),
    ({"length": "13-"}, 0),
    ({"prompt": "question 3.1"}, 4),
    ({"text": "ANSWER 1"}, 4),
    ({"route": "grpo", "step": "1"}, 2),
    ({"step": "nonsense"}, 0),
]


def test_filters_find_what_they_ask_for(browser, pages):
    page = Page(browser, pages["one"], "#rollouts")
    for filters, count in FILTERS:
        for name, value in filters.items():
            (page.choose if name in ("route", "correct", "split") else page.type)(name, value)
        page.sees(lambda: page.count() == f"{count} of 32 rollouts")  # noqa: B023
        page.sees(lambda: len(page.all("#rows .row")) == count)  # noqa: B023
        page.one("#f-clear").click()
        page.sees(lambda: page.count() == "32 of 32 rollouts")
    page.picture("rollouts")


def test_a_rollout_is_shown_among_its_group_with_its_demonstration(browser, pages):
    page = Page(browser, pages["one"])
    page.open(route="sdpo", step="1")
    members = page.all(".member")
    assert (
        len(members) == 4
        and "now" in members[1].get_attribute("class")
        and "shown" in members[0].get_attribute("class")
    )
    assert "shown to the teacher of 1, 2, 3" in members[0].text and "its teacher was shown rollout 0" in members[1].text
    assert page.text("#teacher-prompt").endswith("Correct solution: ...")
    assert page.text("#demonstration") == page.text(".member:nth-child(1) .text")
    assert "17+25=?" in page.text("#prompt") and '"parsed": true' in page.text(".member .verdict")
    members[3].find_element(By.TAG_NAME, "h3").click()
    page.sees(lambda: "now" in page.all(".member")[3].get_attribute("class") and page.view() == ["rollout"])
    page.all(".member")[0].find_element(By.TAG_NAME, "h3").click()
    page.sees(lambda: not page.all("#teacher-prompt"))  # the right one has no teacher
    assert not page.errors()


def test_tokens_are_coloured_and_hovering_shows_what_both_like(browser, pages):
    page = Page(browser, pages["one"])
    page.open(route="sdpo", step="1")

    def colours() -> list[str]:
        return [token.value_of_css_property("background-color") for token in page.all(".member.now .token")]

    found = {}
    for button in range(1, 7):
        page.all("#rollout .bar button")[button - 1].click()
        found[button] = tuple(colours())
        assert len(set(found[button])) > 6, button
    assert len(set(found.values())) == 6
    page.press("1")
    page.sees(lambda: tuple(colours()) == found[1])
    assert set(
        token.value_of_css_property("background-color") for token in page.all(".member:nth-child(1) .token")
    ) == {"rgba(0, 0, 0, 0)"}  # nothing to weigh on the other route
    token = page.all(".member.now .token")[3]
    webdriver.ActionChains(browser).move_to_element(token).perform()
    page.sees(lambda: page.one("#tip").is_displayed())
    assert "token 4 of 12" in page.text("#tip") and len(page.all("#tip .words")) == 2
    words = [cell.text for cell in page.all("#tip .words:last-of-type td.word")]
    assert words[:5] == [token.text, "yes", "no", "<b>", "↵"]
    assert [row.text.split()[0] for row in page.all("#tip .numbers tr")][:3] == ["student", "sampler", "teacher"]
    page.picture("rollout")
    webdriver.ActionChains(browser).move_to_element(page.one("h2")).perform()
    page.sees(lambda: not page.one("#tip").is_displayed())


def test_what_a_model_wrote_is_shown_as_text(browser, pages):
    page = Page(browser, pages["one"])
    assert "taken" not in browser.title
    page.open(text="document.title")
    page.sees(lambda: page.count() == "1 of 32 rollouts")
    for place in ("#prompt", "#teacher-prompt", ".member.now .text", ".member.now .verdict"):
        text = page.text(place)
        assert SHOWN in text.replace("\\", "") and "\ufffd" in text, place
    for sign in ("\u2400", "\u241b", "⟨U+202E⟩"):  # NUL, escape, and what turns the direction of writing
        assert sign in page.text(".member.now .text")
    assert not set(page.text("#prompt")) & set("\x00\x1b\u202e")
    webdriver.ActionChains(browser).move_to_element(page.all(".member.now .token")[-1]).perform()
    page.sees(lambda: page.one("#tip").is_displayed())
    assert SHOWN.replace(" ", "␣") in page.text("#tip")
    assert browser.title == "SRPO runs" and not page.all("main img") and len(page.all("main script")) == 0
    assert HOSTILE[:8] == "</script" and not page.errors()


def test_the_keyboard_is_enough(browser, pages):
    page = Page(browser, pages["one"])
    page.press("r")
    page.sees(lambda: page.view() == ["rollouts"])
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.PAGE_DOWN, Keys.HOME, Keys.END, Keys.ARROW_UP)
    page.sees(lambda: page.one("#rows .row[aria-selected=true]").get_attribute("data-place") == "30")
    page.press("/")
    page.sees(lambda: browser.switch_to.active_element.get_attribute("id") == "f-text")
    page.press("question 1.0")
    page.sees(lambda: page.count() == "4 of 32 rollouts")
    page.press(Keys.ESCAPE, Keys.HOME, Keys.ARROW_DOWN, Keys.ENTER)
    page.sees(lambda: page.view() == ["rollout"])
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.sees(lambda: page.one("#tip").is_displayed() and "token 2 of 12" in page.text("#tip"))
    page.press(Keys.ARROW_DOWN)
    page.sees(lambda: "now" in page.all(".member")[2].get_attribute("class"))
    page.press("4")
    page.sees(lambda: page.all("#rollout .bar button")[3].get_attribute("aria-pressed") == "true")
    page.press("]")
    page.sees(lambda: "now" in page.all(".member")[2].get_attribute("class"))
    page.press("?")
    page.sees(lambda: page.one("#help").is_displayed())
    page.press(Keys.ESCAPE)
    page.press(Keys.ESCAPE)
    page.sees(lambda: page.view() == ["rollouts"])
    before = page.one("body").value_of_css_property("background-color")
    page.press("t")
    page.sees(lambda: page.one("body").value_of_css_property("background-color") != before)
    browser.back()
    page.sees(lambda: page.view() == ["rollout"])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_can_be_read_in_light_and_dark(browser, pages, theme):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    page = Page(browser, pages["one"])
    page.open(route="sdpo", step="1")
    back = luminance(page.one("body").value_of_css_property("background-color"))
    for css in (".member .text", ".member .verdict", ".member h3 .wrong", "nav a"):
        text = luminance(page.one(css).value_of_css_property("color"))
        assert (max(text, back) + 0.05) / (min(text, back) + 0.05) > 4.5 or css == "nav a", css
    assert (back > 0.5) == (theme == "light")
    page.picture(f"rollout_{theme}")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def luminance(colour: str) -> float:
    """Of a CSS colour, by the rule of WCAG."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_several_runs_are_told_apart(browser, pages):
    page = Page(browser, pages["two"])
    assert [row.find_element(By.TAG_NAME, "td").text for row in page.all("#runs tr")[1:]] == ["first", "second"]
    assert len(page.all("#panels figure:first-child polyline")) == 2
    page.press("r")
    page.choose("run", "second")
    page.sees(lambda: page.count() == "40 of 72 rollouts")
    page.open(step="4")
    page.sees(lambda: page.text("#rollout h2").startswith("second, step 4, train, group 0"))


def test_the_table_of_a_comparison_stands_above_the_runs(browser, pages, tmp_path):
    assert not Page(browser, pages["two"]).one("#comparison").is_displayed()
    row = {"method": "srpo, beta=<b>1</b>", "seeds": [1, 2], "steps": 40, "before": 0.25, "best": 0.7, "best_step": 25}
    row |= {"last": 0.6, "last_interval": [0.55, 0.65], "last_by_seed": [0.55, 0.65]}
    found = contents([write_run(tmp_path / "run")], 1000)
    found.overview["comparison"] = [row, {**row, "seeds": [1], "last_interval": None, "last_by_seed": [0.6]}]
    page = Page(browser, write_page(tmp_path / "comparison.html", found))
    rows = [[cell.text for cell in line.find_elements(By.TAG_NAME, "td")] for line in page.all("#comparison tr")[1:]]
    assert rows[0] == ["srpo, beta=<b>1</b>", "1 2", "40", "25.0", "70.0 (25)", "60.0", "55.0 to 65.0", "55.0 65.0"]
    assert rows[1][-2:] == ["\u2013", "60.0"]


def test_ten_thousand_rollouts(browser, tmp_path):
    run = write_run(tmp_path / "large", steps=313, groups=8, tokens=40)
    path = write_page(tmp_path / "large.html", contents([run], 20_000))
    started = time.perf_counter()
    page = Page(browser, path, "#rollouts")
    opened = time.perf_counter() - started
    assert page.count() == "10024 of 10024 rollouts" and len(page.all("#rows .row")) < 60
    started = time.perf_counter()
    page.type("text", "question 300.7")
    page.sees(lambda: page.count() == "4 of 10024 rollouts")
    typed = time.perf_counter() - started
    page.one("#f-clear").click()
    page.one("#table").send_keys(Keys.END)
    page.sees(lambda: page.one("#rows .row[aria-selected=true]").get_attribute("data-place") == "10023")
    started = time.perf_counter()
    page.open(step="300", route="sdpo")
    page.sees(lambda: len(page.all(".member")) == 4)
    looked = time.perf_counter() - started
    size = path.stat().st_size / 1e6
    print(
        f"10,024 rollouts: {size:.1f} MB, opened in {opened:.2f} s, searched in {typed:.2f} s, one opened in {looked:.2f} s"
    )
    assert opened < 20 and not page.errors()
