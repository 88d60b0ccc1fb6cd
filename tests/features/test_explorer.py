"""The pages in a real browser, from the disk and with the network off, and what they hold."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import interpret_features
from tests.helpers.edits import edits_content
from tests.helpers.features import write_planted_grid
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.activations.formats import AnswerLine
from thought_saes.downstream.beside import read_beside
from thought_saes.features import load_features
from thought_saes.features.beside import Beside, Effect
from thought_saes.features.explorer import LARGEST_PAGE, cell_page, for_script
from thought_saes.features.lenses import Lens
from thought_saes.results.names import SaeKey

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)> and </script> too",
    'Ada\'s "quoted" and curly \N{RIGHT SINGLE QUOTATION MARK} question',
]
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver is installed")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The explorer of the planted grid; the hostile questions are among its examples."""
    folder = tmp_path_factory.mktemp("explorer")
    activations, results = write_planted_grid(folder, HOSTILE, n_rows=60)
    with pytest.MonkeyPatch.context() as patch:
        words = ["--activations", activations, "--results", results, "--concept-column", "colour", "--workers", 1]
        patch.setattr(sys, "argv", ["interpret_features.py", *map(str, words)])
        patch.setattr("thought_saes.features.concepts.MIN_ROWS", 5)
        interpret_features.main()
    return results / "features"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        yield driver
    finally:
        driver.quit()


def texts(browser: Any, selector: str) -> list[str]:
    return [element.get_attribute("textContent") for element in browser.find_elements("css selector", selector)]


def open_page(browser: Any, path: Path, fragment: str = "") -> None:
    browser.get("about:blank")
    browser.get(path.as_uri() + fragment)


@needs_browser
def test_the_index_opens_a_cell_from_the_disk_without_a_console_error(browser: Any, pages: Path) -> None:
    open_page(browser, pages / "index.html")
    assert texts(browser, "#map th") == ["layer", "position 1", "position 2", "0"]
    for option in browser.find_elements("css selector", "#measure option"):
        option.click()
        assert len(texts(browser, "#map a")) == 2
    browser.find_elements("css selector", "#map a")[1].click()
    assert browser.current_url.split("#")[0] == (pages / "pos2_layer0.html").as_uri()
    assert "Thought 2, layer 0" in texts(browser, "h1")
    assert browser.get_log("browser") == []


@needs_browser
def test_a_search_finds_the_feature_and_a_click_shows_its_examples(browser: Any, pages: Path) -> None:
    open_page(browser, pages / "pos1_layer0.html")
    everything = len(texts(browser, "#halves button"))
    box = browser.find_element("id", "search")
    box.send_keys("colour = red f1>0.9")
    found = browser.find_elements("css selector", "#halves button")
    assert 0 < len(found) < everything
    assert found[0].get_attribute("data-half") == "3+"
    found[0].click()
    assert texts(browser, "#detail > h2")[0] == "Feature 3+: colour = red"
    firing = texts(browser, ".example.fires .question")
    assert any("about red things" in text for text in firing)
    assert not any("about blue things" in text or "about green things" in text for text in firing)
    assert texts(browser, ".example:not(.fires) strong")
    assert len(browser.find_elements("css selector", "svg rect")) == 30
    box.clear()
    box.send_keys("nosuchword")
    assert texts(browser, "#halves button") == []
    assert browser.get_log("browser") == []


@needs_browser
def test_the_keyboard_goes_on_and_back_and_to_the_search(browser: Any, pages: Path) -> None:
    open_page(browser, pages / "pos1_layer0.html")
    body = browser.find_element("css selector", "body")
    names = [button.get_attribute("data-half") for button in browser.find_elements("css selector", "#halves button")]

    def chosen() -> str:
        (button,) = browser.find_elements("css selector", "#halves button[aria-selected=true]")
        return str(button.get_attribute("data-half"))

    assert chosen() == names[0]
    body.send_keys("jj")
    assert chosen() == names[2]
    body.send_keys("k")
    assert chosen() == names[1]
    body.send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "search"
    browser.switch_to.active_element.send_keys("j")  # typed, not obeyed
    assert browser.find_element("id", "search").get_attribute("value") == "j"


@needs_browser
@pytest.mark.parametrize("question", HOSTILE)
def test_questions_with_markup_and_quotes_are_text(browser: Any, pages: Path, question: str) -> None:
    open_page(browser, pages / "pos1_layer0.html")
    browser.execute_script("window.alert = () => { throw new Error('ran'); }")
    seen = set()
    for button in browser.find_elements("css selector", "#halves button"):
        button.click()
        seen |= set(texts(browser, ".example .question"))
        assert not browser.find_elements("css selector", ".example script, .example img")
    assert question in seen
    assert browser.get_log("browser") == []


@needs_browser
def test_a_link_names_a_feature_and_nothing_is_wider_than_a_phone(browser: Any, pages: Path) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for name, fragment in (("index.html", ""), ("pos1_layer0.html", "#3+")):
            open_page(browser, pages / name, fragment)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert texts(browser, "#detail > h2")[0].startswith("Feature 3+")
        (match, *_) = browser.find_elements("css selector", "#detail p a")
        assert match.get_attribute("href").endswith("pos2_layer0.html#3+")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_text_can_end_the_script_it_stands_in() -> None:
    text = "</script><!-- & \u2028"
    escaped = str(for_script({"text": text}))
    assert not set("<>&\u2028") & set(escaped)
    assert json.loads(escaped) == {"text": text}


def test_a_page_of_1024_features_with_long_questions_stays_below_its_limit() -> None:
    generator = np.random.default_rng(0)
    key = SaeKey(Cell(0, 1), 1024, 20)
    rows = [generator.integers(0, 7473, size=20).tolist() for _ in range(2048)]
    halves = pd.DataFrame(
        {
            "half": [f"{half // 2}{'+-'[half % 2]}" for half in range(2048)],
            "top_rows": rows,
            "top_activations": [np.linspace(2, 1, 20).tolist()] * 2048,
            "quantile_rows": rows[::-1],
            "quantile_activations": [np.linspace(2, 0.1, 20).tolist()] * 2048,
            "silent_rows": [row[:5] for row in rows],
            "histogram": [list(range(30))] * 2048,
            "concepts": [[f"value after step {step} = 12" for step in range(5)]] * 2048,
            "concepts_f1": [[0.512345] * 5] * 2048,
            "matches": [["pos3_layer1 17+"] * 6] * 2048,
            "match_correlations": [[0.75] * 6] * 2048,
        }
    ).assign(density=0.1, max_activation=2.0, mean_activation=1.0, f1=0.5, precision=0.5, recall=0.5, threshold=0.1)
    words = ["apples", "costs", "Natalia", "\N{EURO SIGN}12", "twice"]
    examples = [{"question": " ".join(generator.choice(words, 60)), "answer": " ".join(words * 10)}] * 7473
    values = {"coverage": 0.5, "low": 0.4, "high": 0.6}
    sae = {"layer": 0, "position": 1, "latent_dim": 1024, "k": 20, "fvu": 0.1, "sae": values}
    sae |= {"best_family": "answer", "monosemantic_share": None}
    scores = {"saes": [sae], "metadata": {"page": {"latent_dim": 1024, "k": 20}, "position_0": "bot token"}}
    page = cell_page(key.cell, halves, scores, examples)
    assert 1_000_000 < len(page) <= LARGEST_PAGE


@needs_browser
def test_answers_edits_and_lenses_stand_on_the_page_where_they_are_known(
    browser: Any, pages: Path, tmp_path: Path
) -> None:
    features = load_features(pages).features
    scores = json.loads((pages / "concept_scores.json").read_text())
    cell = Cell(0, 1)
    halves = features[(features["layer"] == 0) & (features["position"] == 1)].copy()
    for name in Lens._fields:
        halves[f"lens_{name}"] = [[f"<b>{name}</b>"] for _ in range(len(halves))]
    examples = [{"question": f"question {row}"} for row in range(60)]
    answers = [AnswerLine(row, f"says {row}", row, 7, row == 7, 0.5, 0.5, -1.0) for row in range(60)]
    key = SaeKey(cell, 16, 2)
    beside = Beside(answers, {key: 0.25}, {(key, "3+"): Effect(40, 0.75, 0.5, 0.875, 1.0)})
    page = tmp_path / "pos1_layer0.html"
    page.write_bytes(cell_page(cell, halves, scores, examples, beside))
    open_page(browser, page, "#3+")
    said = browser.find_element("id", "detail").text
    assert "25.0% of the answers change (95 %: 12.5% to 50.0%), over the 40 questions on which it fires" in said
    assert "a random direction of the same length changes <0.1%" in said
    assert "makes likelier: <b>up</b>" in said
    assert "the thought moves towards: <b>thought</b>" in said
    assert re.search(r"the model says says \d+ \(wrong\)", said)
    assert "25.0%" in browser.find_element("id", "facts").text
    (other, *_) = (half for half in halves[halves["density"] > 0]["half"] if half != "3+")
    open_page(browser, page, f"#{other}")
    assert "of the answers change" not in browser.find_element("id", "detail").text
    assert browser.get_log("browser") == []


def test_what_is_beside_the_features_is_read_from_the_folders(tmp_path: Path) -> None:
    activations, results = write_planted_grid(tmp_path, n_rows=60)
    cache = ActivationCache(activations)
    assert read_beside(results, cache) == Beside((), {}, {})
    (results / "edits.json").write_text(json.dumps(edits_content()))
    effects = read_beside(results, cache).effects
    known = [one for one in edits_content()["ablations"] if one.get("agreement") is not None]
    assert known
    assert len(effects) == len(known)
    key = SaeKey(Cell(known[0]["layer"], known[0]["position"]), known[0]["latent_dim"], known[0]["k"])
    assert effects[key, known[0]["half"]].agreement == known[0]["agreement"]
