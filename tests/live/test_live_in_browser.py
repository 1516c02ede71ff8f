"""The live pages as a person meets them, in a real Chromium."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from .conftest import Server, Training

NASTY = "<img src=x onerror=alert(1)>"
SIZE = "return document.querySelector('#overview figure').lossdoctorChart?.data[0].length ?? 0"


@pytest.fixture
def browser(chrome: webdriver.Chrome, shared: tuple[Path, Server]) -> Iterator[webdriver.Chrome]:
    chrome.get_log("browser")
    chrome.set_window_size(1200, 1000)
    yield chrome
    chrome.get(shared[1].url)
    chrome.execute_script("localStorage.clear()")


def wait(browser: webdriver.Chrome, condition: Callable[[webdriver.Chrome], Any]) -> Any:
    return WebDriverWait(browser, 60, poll_frequency=0.1).until(condition)


def go(browser: webdriver.Chrome, url: str) -> None:
    browser.get(url)
    wait(browser, lambda b: b.execute_script("return document.documentElement.dataset.ready"))


def errors(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def text(browser: webdriver.Chrome, selector: str) -> str:
    return str(browser.find_element(By.CSS_SELECTOR, selector).text)


def test_points_and_findings_appear_without_loading_the_page_anew(
    browser: webdriver.Chrome, shared: tuple[Path, Server]
) -> None:
    root, server = shared
    training = Training(root / "sickens", model=NASTY)
    training.go(30, extra={NASTY: 1.0})
    go(browser, server.url + "run?run=sickens")
    assert text(browser, "#state") == "running"
    assert browser.find_elements(By.CSS_SELECTOR, ".finding") == []
    browser.execute_script("window.same = true")
    browser.find_element(By.CSS_SELECTOR, "#overview h2").location_once_scrolled_into_view  # noqa: B018
    before = wait(browser, lambda b: b.execute_script(SIZE))
    while not browser.find_elements(By.CSS_SELECTOR, ".finding"):
        assert training.step < 100_000
        training.go(training.step // 40, sick=True)
        wait(
            browser,
            lambda b: b.execute_script(SIZE) >= training.step // 10,
        )
    assert browser.execute_script("return window.same")
    assert browser.execute_script(SIZE) > before
    assert "dominant-gradient" in browser.execute_script("return document.getElementById('news').textContent")
    assert "dominant-gradient" in text(browser, ".finding summary")
    assert browser.title.endswith(") sickens")
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".finding canvas"))
    assert browser.find_elements(By.CSS_SELECTOR, "img, #metrics img") == []
    assert errors(browser) == []


def test_a_zoom_and_an_opened_metric_stay_while_the_run_grows(
    browser: webdriver.Chrome, shared: tuple[Path, Server]
) -> None:
    root, server = shared
    training = Training(root / "grows")
    training.go(60)
    go(browser, server.url + "run?run=grows")
    browser.find_element(By.CSS_SELECTOR, "#overview h2").location_once_scrolled_into_view  # noqa: B018
    wait(browser, lambda b: b.execute_script(SIZE))
    browser.execute_script(
        "document.querySelector('#overview figure').lossdoctorChart.setScale('x', {min: 100, max: 200})"
    )
    box = browser.find_element(By.ID, "search")
    box.send_keys("nmse")
    metric = browser.find_element(By.CSS_SELECTOR, "#metrics > details[data-name='flow/nmse']")
    metric.find_element(By.TAG_NAME, "summary").click()
    wait(browser, lambda b: metric.find_elements(By.TAG_NAME, "canvas"))
    value = metric.find_element(By.CSS_SELECTOR, ".value").text
    training.go(40)
    wait(browser, lambda b: b.execute_script(SIZE) >= 100)
    wait(browser, lambda b: "at step 990" in text(b, "#verdict"))
    assert text(browser, "#extent").startswith("991 steps, 100 measured in full")
    scale = browser.execute_script("return document.querySelector('#overview figure').lossdoctorChart.scales.x")
    assert (scale["min"], scale["max"]) == (100, 200)
    metric = browser.find_element(By.CSS_SELECTOR, "#metrics > details[data-name='flow/nmse']")
    assert metric.get_attribute("open")
    assert metric.find_element(By.CSS_SELECTOR, ".value").text != value
    shown = [one for one in browser.find_elements(By.CSS_SELECTOR, "#metrics > details") if one.is_displayed()]
    assert len(shown) == 1, "what is searched for is still searched for"
    training.end()
    wait(browser, lambda b: text(b, "#state") == "ended")
    assert errors(browser) == []


def test_treatment_and_experiments_appear_as_they_happen(
    browser: webdriver.Chrome, shared: tuple[Path, Server]
) -> None:
    root, server = shared
    training = Training(root / "treated")
    training.go(30)
    go(browser, server.url + "run?run=treated")
    shown = "return ['treatment', 'experiments'].filter(id => document.getElementById(id).offsetHeight > 0)"
    links = "return [...document.querySelectorAll('nav a')].filter(a => a.offsetWidth > 0).map(a => a.hash)"
    assert browser.execute_script(shown) == []
    assert "#treatment" not in browser.execute_script(links)
    rows = "return document.querySelectorAll('.receipts tbody tr').length"
    marks = "return JSON.parse(document.querySelector('#treatment figure').dataset.marks)"
    for count, step in enumerate((100, 200), start=1):
        change = {"before": {"dino": 0.5**count}, "after": {"dino": 0.5 ** (count + 1)}, "reasons": {"dino": NASTY}}
        training.writer.event("balance", step=step, balancer="ratio", **change)
        wait(browser, lambda b, count=count: b.execute_script(rows) == count)  # type: ignore[misc]
        assert browser.execute_script(shown) == ["treatment"]
        assert browser.execute_script(marks) == [100, 200][:count]
        browser.execute_script("document.getElementById('treatment').scrollIntoView()")
        canvas = wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#treatment canvas"))[0]
        if count == 1:
            browser.execute_script("arguments[0].same = true", canvas)
    assert browser.execute_script("return arguments[0].same", canvas), "the chart stays, with its zoom"
    training.end()
    asked = {"arm": "only:flow", "key": "only.cos", "text": "", "verdict": "yes", "effect": None}
    answers = {"command": ["python", NASTY], "steps": 20, "seeded": True, "conditioned": True, "expectations": [asked]}
    answers |= {"schema": "lossdoctor/effects@1", "arms": [], "failed": []}
    (root / "treated" / "effects.json").write_text(json.dumps(answers), encoding="utf-8")
    wait(browser, lambda b: b.execute_script(shown) == ["treatment", "experiments"])
    assert "only:flow" in text(browser, "#experiments")
    assert {"#treatment", "#experiments"} <= set(browser.execute_script(links))
    assert browser.find_elements(By.CSS_SELECTOR, "img") == []
    assert errors(browser) == []


def test_theme_and_language_are_kept_from_page_to_page(browser: webdriver.Chrome, shared: tuple[Path, Server]) -> None:
    root, server = shared
    training = Training(root / "kept")
    training.go(20)
    go(browser, server.url)

    def colour() -> str:
        return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    before = colour()
    browser.find_element(By.ID, "theme").click()
    assert colour() != before
    browser.find_element(By.CSS_SELECTOR, "[data-set-lang='zh-CN']").click()
    assert text(browser, "h1") == "所有运行"
    assert "运行中" in text(browser, "#rows")
    assert text(browser, "#connection") == "实时更新中"
    after = colour()
    go(browser, server.url + "run?run=kept")
    assert colour() == after
    assert text(browser, "#findings h2") == "发现"
    assert text(browser, "#state") == "运行中"
    assert browser.execute_script("return document.documentElement.lang") == "zh-CN"
    assert browser.find_element(By.CSS_SELECTOR, "[data-set-lang='zh-CN']").get_attribute("aria-pressed") == "true"
    assert errors(browser) == []


@pytest.mark.parametrize("width", [360, 1400])
def test_no_sideways_scrolling(browser: webdriver.Chrome, shared: tuple[Path, Server], width: int) -> None:
    root, server = shared
    for name in ("wide/a-run-with-a-long-name-0123456789", f"wide/b{width}"):
        if not (root / name).exists():
            Training(root / name).go(20)
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    both = f"run=wide%2Fa-run-with-a-long-name-0123456789&run=wide%2Fb{width}"
    try:
        for page in ("", "run?run=wide%2Fa-run-with-a-long-name-0123456789", f"compare?{both}"):
            go(browser, server.url + page)
            assert browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth") <= 0, page
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_list_is_searched_sorted_and_chosen_from_by_keyboard(
    browser: webdriver.Chrome, shared: tuple[Path, Server]
) -> None:
    root, server = shared
    for steps, name in enumerate(("keys/x", "keys/y", "keys/z"), 1):
        Training(root / name).go(20 * steps)
    go(browser, server.url)

    def press(*keys: str) -> Any:
        ActionChains(browser).send_keys(*keys).perform()
        return browser.switch_to.active_element

    def rows() -> list[str]:
        shown = browser.find_elements(By.CSS_SELECTOR, "#rows tr[data-run]")
        return [str(row.get_attribute("data-run")) for row in shown]

    wait(browser, lambda b: "keys/z" in rows())
    assert press("/").get_attribute("id") == "search"
    press("keys/")
    assert rows() == ["keys/x", "keys/y", "keys/z"]
    assert text(browser, "#rows .group") == "keys/"
    browser.find_element(By.CSS_SELECTOR, "[data-sort='steps']").send_keys(Keys.ENTER)
    assert rows() == ["keys/z", "keys/y", "keys/x"]
    assert browser.find_element(By.CSS_SELECTOR, "th.of-steps").get_attribute("aria-sort") == "descending"
    press(Keys.ARROW_DOWN)
    focused = press("x")
    assert focused.text == "z"
    assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused) == "solid"
    assert browser.find_element(By.ID, "compare").get_attribute("href") is None, "one alone is no comparison"
    press(Keys.ARROW_DOWN, "x")
    compare = browser.find_element(By.ID, "compare")
    assert str(compare.get_attribute("href")).endswith("compare?run=keys%2Fz&run=keys%2Fy")
    compare.send_keys(Keys.ENTER)
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#charts canvas")) > 2)
    wait(browser, lambda b: text(b, "#charts .key").split()[::2] == ["keys/z", "keys/y"])
    assert "keys/z running, 591 steps" in text(browser, "#legend")
    browser.back()
    wait(browser, lambda b: "keys/z" in rows())
    press("/", "keys/x")
    wait(browser, lambda b: rows() == ["keys/x"])
    press(Keys.TAB)
    browser.find_element(By.CSS_SELECTOR, "#rows a").send_keys(Keys.ENTER)
    wait(browser, lambda b: text(b, "h1") == "keys/x")
    assert errors(browser) == []


def test_a_new_run_comes_into_the_list_and_a_deleted_one_goes(
    browser: webdriver.Chrome, shared: tuple[Path, Server]
) -> None:
    root, server = shared
    go(browser, server.url)
    Training(root / "new").go(5)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "tr[data-run='new']"))
    shutil.rmtree(root / "new")
    wait(browser, lambda b: not b.find_elements(By.CSS_SELECTOR, "tr[data-run='new']"))
    assert errors(browser) == []


def test_a_run_that_is_deleted_while_it_is_looked_at(browser: webdriver.Chrome, shared: tuple[Path, Server]) -> None:
    root, server = shared
    go(browser, server.url + "run?run=goes")
    assert text(browser, "#waiting") == "waiting for the run to begin"
    Training(root / "goes").go(30)
    browser.find_element(By.CSS_SELECTOR, "#overview").location_once_scrolled_into_view  # noqa: B018
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#overview canvas"))
    assert not browser.find_element(By.ID, "waiting").is_displayed()
    shutil.rmtree(root / "goes")
    wait(browser, lambda b: text(b, "#state") == "deleted; this is what was seen last")
    assert browser.find_elements(By.CSS_SELECTOR, "#overview canvas"), "what was seen stays"
    assert errors(browser) == []


def test_it_comes_back_when_the_server_does(
    browser: webdriver.Chrome, tmp_path: Path, serve: Callable[..., Server]
) -> None:
    training = Training(tmp_path / "a")
    training.go(30)
    first = serve(tmp_path)
    go(browser, first.url + "run?run=a")
    browser.execute_script("window.same = true")
    browser.find_element(By.CSS_SELECTOR, "#overview h2").location_once_scrolled_into_view  # noqa: B018
    wait(browser, lambda b: b.execute_script(SIZE) == 30)
    first.stop(signal.SIGINT)
    wait(browser, lambda b: text(b, "#connection") == "connection lost, trying again")
    training.go(10)
    serve(tmp_path, port=first.port)
    wait(browser, lambda b: text(b, "#connection") == "live")
    wait(browser, lambda b: b.execute_script(SIZE) == 40)
    training.go(1)
    wait(browser, lambda b: b.execute_script(SIZE) == 41)
    assert browser.execute_script("return window.same")
