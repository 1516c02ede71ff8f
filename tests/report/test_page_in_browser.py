"""The page as a person meets it, in a real Chromium."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lossdoctor.diagnose import Diagnosis
from lossdoctor.record import Record
from lossdoctor.report.page import page
from lossdoctor.rules.finding import Cause, Evidence, Finding, Message
from lossdoctor.store import MemoryWriter


@pytest.fixture(scope="module")
def browser(chrome: webdriver.Chrome) -> webdriver.Chrome:
    return chrome


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    writer = MemoryWriter({"heads": ["head"]})
    generator = np.random.default_rng(0)
    for step in range(0, 2000, 20):
        noise = generator.normal(size=3)
        values = {
            "loss/flow": 1 + noise[0] / 10,
            "loss/dino": 2 + noise[1] / 10,
            "grad_weighted/dino": 1e-3 * np.exp(noise[1]),
            "grad_weighted/flow": np.exp(noise[2] / 5),
            "grad/total": np.exp(noise[2] / 5),
            "flow/nmse": 0.5 + noise[0] / 20,
            "std/min": 0.1,
            "std/mean": 0.5,
            "std/max": 0.9,
            "<b>bold</b>": noise[0],
            "never": float("nan"),
            **{f"flow/nmse_t{i}": 0.2 + i / 10 for i in range(10)},
            **{f"grad_module/dino/{m}": 0.1 for m in ("head", "body")},
        }
        writer.append([Record(step, values, full=True, time=float(step))])
    writer.append([Record(1999, {f"flow/ode_error@{k}": 1 / k for k in (8, 16, 32, 64)} | {"flow/ode_order": 1.0})])
    finding = Finding(
        "GRD102",
        "weak-gradient",
        "error",
        "suspected",
        "mechanism",
        Message("cause.weight-too-small"),
        evidence=(
            Evidence("grad_weighted/dino", 1e-3, 2e-3, 200, 1980),
            Evidence("flow/nmse", 0.5, 0.4, 200, 1980),  # a round number, where a line of the grid lies too
        ),
        causes=(Cause("weight-too-small"),),
        loss="dino",
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    told = page(writer.run(), Diagnosis("run", 2000, 100, (finding,), ("VEL401",), ()), title="<i>run</i>")
    path.write_text(told, encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: webdriver.Chrome, document: Path) -> webdriver.Chrome:
    browser.get_log("browser")
    browser.set_window_size(1200, 1000)
    browser.get(document.as_uri())
    WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.documentElement.dataset.ready"))
    WebDriverWait(browser, 20).until(lambda b: b.find_elements(By.CSS_SELECTOR, ".finding canvas"))
    return browser


def errors(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def colour(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))


def test_it_opens_without_a_complaint_and_draws(opened: webdriver.Chrome) -> None:
    opened.execute_script("window.scrollTo(0, document.body.scrollHeight / 2)")
    WebDriverWait(opened, 20).until(lambda b: len(b.find_elements(By.CSS_SELECTOR, "#overview canvas")) >= 4)
    assert errors(opened) == []
    painted = opened.execute_script(
        "const c = document.querySelector('.finding canvas');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)"
    )
    assert painted


@pytest.mark.parametrize("place", [0, 1])
def test_the_threshold_is_seen(opened: webdriver.Chrome, place: int) -> None:
    """Pixels in the colour of an error, all along a line: not under the grid."""
    red = opened.execute_script(
        """
        const canvas = document.querySelectorAll("figure[data-threshold] canvas")[arguments[0]];
        const mark = document.createElement("span");
        mark.style.color = getComputedStyle(document.documentElement).getPropertyValue("--error");
        document.body.append(mark);
        const [r, g, b] = getComputedStyle(mark).color.match(/[0-9]+/g).map(Number);
        mark.remove();
        const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const rows = new Array(height).fill(0);
        for (let i = 0; i < data.length; i += 4) {
          const far = Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b);
          if (data[i + 3] > 200 && far < 30) rows[Math.floor(i / 4 / width)] += 1;
        }
        return Math.max(...rows) / width;
        """,
        place,
    )
    assert red > 0.3


def test_names_are_names(opened: webdriver.Chrome) -> None:
    assert opened.find_element(By.TAG_NAME, "h1").text == "<i>run</i>"
    assert opened.find_elements(By.CSS_SELECTOR, "#metrics b") == []


def test_language(opened: webdriver.Chrome) -> None:
    heading = opened.find_element(By.CSS_SELECTOR, "#findings h2")
    assert heading.text == "Findings"
    opened.find_element(By.CSS_SELECTOR, "[data-set-lang='zh-CN']").click()
    assert heading.text == "发现"
    assert opened.execute_script("return document.documentElement.lang") == "zh-CN"
    opened.find_element(By.CSS_SELECTOR, "[data-set-lang='en']").send_keys(Keys.ENTER)
    assert heading.text == "Findings"


def test_theme(opened: webdriver.Chrome) -> None:
    before = colour(opened)
    opened.find_element(By.ID, "theme").click()
    after = colour(opened)
    assert before != after
    opened.find_element(By.ID, "theme").click()
    assert colour(opened) == before
    assert errors(opened) == []


def test_zoom_goes_to_all_charts_and_back(opened: webdriver.Chrome) -> None:
    def widths() -> list[float]:
        axis = "uPlotCharts().map(p => p.scales.x.max - p.scales.x.min)"
        return list(opened.execute_script(f"return {axis}"))

    charts = "return [...document.querySelectorAll('figure.chart')].filter(f => f.lossdoctorChart).length"
    WebDriverWait(opened, 20).until(lambda b: b.execute_script(charts) >= 2)
    opened.execute_script(
        "window.uPlotCharts = () => [...document.querySelectorAll('figure.chart')]"
        ".map(f => f.lossdoctorChart).filter(p => p && !('points' in p.root.closest('figure').dataset))"
    )
    whole = widths()
    over = opened.find_element(By.CSS_SELECTOR, ".finding .u-over")
    ActionChains(opened).move_to_element_with_offset(over, -60, 0).click_and_hold().move_by_offset(
        80, 0
    ).release().perform()
    WebDriverWait(opened, 10).until(lambda b: max(widths()) < min(whole))
    ActionChains(opened).double_click(over).perform()
    WebDriverWait(opened, 10).until(lambda b: widths() == pytest.approx(whole))


def test_search_and_opening_a_metric(opened: webdriver.Chrome) -> None:
    box = opened.find_element(By.ID, "search")
    box.send_keys("NMSE_T3")
    shown = [one for one in opened.find_elements(By.CSS_SELECTOR, "#metrics > details") if one.is_displayed()]
    assert [one.get_attribute("data-name") for one in shown] == ["flow/nmse_t3"]
    shown[0].find_element(By.TAG_NAME, "summary").click()
    WebDriverWait(opened, 10).until(lambda b: shown[0].find_elements(By.TAG_NAME, "canvas"))
    box.clear()
    box.send_keys("never")
    empty = next(one for one in opened.find_elements(By.CSS_SELECTOR, "#metrics > details") if one.is_displayed())
    empty.find_element(By.TAG_NAME, "summary").click()
    WebDriverWait(opened, 10).until(lambda b: "no finite value" in empty.text)
    assert errors(opened) == []


def test_keyboard_reaches_everything(opened: webdriver.Chrome) -> None:
    opened.execute_script("document.body.focus(); window.scrollTo(0, 0)")
    reached = []
    for _ in range(12):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        active = opened.switch_to.active_element
        reached.append((active.tag_name, active.get_attribute("id") or active.get_attribute("class")))
    tags = [tag for tag, _ in reached]
    assert tags[0] == "a", "the way past the header comes first"
    assert "button" in tags
    assert "summary" in tags


@pytest.mark.parametrize("width", [360, 1400])
def test_no_sideways_scrolling(opened: webdriver.Chrome, width: int) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        opened.refresh()
        WebDriverWait(opened, 20).until(lambda b: b.execute_script("return document.documentElement.dataset.ready"))
        overflow = opened.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_print_shows_findings_in_ink(opened: webdriver.Chrome) -> None:
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert colour(opened) == "rgb(255, 255, 255)"
        assert not opened.find_element(By.CSS_SELECTOR, ".tools").is_displayed()
        assert opened.find_element(By.CSS_SELECTOR, ".finding .sentence").is_displayed()
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
