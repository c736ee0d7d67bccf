"""Opens pages in Debian's Chromium, and works with them as a reader does."""

import csv
import json
import shutil

import numpy as np
import pytest

from dbl_tf import LabelStatistics, losses
from pipelines.reports import against, comparison
from pipelines.reports import run as run_page
from pipelines.reports.changes import KINDS
from pipelines.runs import scores as run_scores

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)
NAMES = [
    *(f"label {i}" for i in range(77)),
    "</script><script>document.title = 'broken'</script>",
    "<img src=http://example.invalid/x onerror=\"document.title = 'broken'\">",
    "x" * 300,
]


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    share = np.geomspace(0.4, 0.01, len(NAMES))
    train, test = (rng.random((n, len(NAMES))) < share for n in (1500, 400))
    train[0] = test[0] = True
    statistics = LabelStatistics.from_labels(train, NAMES)
    ease = rng.random(len(NAMES))
    logits = rng.normal(np.where(test, 3 * ease, -2), 1.2)
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
    thresholds = np.full(len(NAMES), 0.4)
    thresholds[-3] = 0.9999
    found = run_scores.score(
        test, probabilities, statistics, run_scores.Thresholds(thresholds, "val")
    )
    return statistics, train, test, probabilities, thresholds, found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scores):
    """A comparison of two runs, one of which has a page."""
    folder = tmp_path_factory.mktemp("pages")
    statistics, train, test, probabilities, thresholds, found = scores
    loss = losses.DistributionBalancedLoss(
        statistics.class_counts, statistics.num_examples, rebalance=None
    )
    (folder / "db").mkdir()
    run_page.write_run_report(
        folder / "db" / "report.html",
        title="A run",
        statistics=statistics,
        labels=test,
        probabilities=probabilities,
        thresholds=thresholds,
        scores=found,
        image_names=[f"images/{i}.jpg" for i in range(len(test))],
        read_images=lambda chosen: (np.full((40, 60, 3), i % 256, np.uint8) for i in chosen),
        config={"method": "db", "dataset": "table", "examples": f"/data/{'x' * 60}/{'y' * 60}.csv"},
        made_by={"command": "python train.py --dataset=table", "data": "f" * 64},
        history={"epoch": [0, 1], "loss": [0.5, 0.25], "val_map": [0.3, 0.4]},
        loss=loss.call,
        train_labels=train,
        observed_counts=statistics.class_counts,
        num_draws=1500,
    )
    other = run_scores.score(
        test, probabilities**2 / 2, statistics, run_scores.Thresholds(thresholds, "val")
    )
    runs = [
        ({"method": name, "seed": 0, "run_dir": str(folder / name)}, content)
        for name, content in (("erm", other), ("db", found))
    ]
    comparison.write_comparison(folder / "report.html", title="Compared", runs=runs)
    against.write(
        folder / "against",
        title="New against old",
        models={"old": "runs/old", "new": NAMES[-2]},
        data_name="examples",
        class_names=NAMES,
        groups=[entry["group"] for entry in found["per_class"].values()],
        train_counts=statistics.class_counts.tolist(),
        labels=test,
        probabilities=[probabilities, _better(test, probabilities)],
        thresholds=[thresholds, np.full(len(NAMES), 0.5)],
        image_names=[f"images/{i}.jpg" for i in range(len(test))],
        read_images=lambda chosen: (np.full((40, 60, 3), i % 256, np.uint8) for i in chosen),
        only={"old": [NAMES[-1]], "new": [], "data": [NAMES[-3]]},
        num_resamples=50,
    )
    return folder


def _better(labels, probabilities):
    """Raises and lowers the probabilities of the first twenty labels towards the truth."""
    changed = probabilities.copy()
    changed[:, :20] += 0.4 * (labels[:, :20] - changed[:, :20])
    return changed


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000",
        "--disable-background-networking", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


@pytest.fixture
def show(browser):
    """Opens a page at a width and in a color scheme; at the end no error and no request is left."""

    def show(path, width=1280, scheme="light"):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get("about:blank")  # the same address with another fragment would not load anew
        browser.get(path.as_uri())
        return browser

    browser.get_log("browser"), browser.get_log("performance")
    yield show
    assert browser.get_log("browser") == []
    entries = [entry["message"] for entry in browser.get_log("performance")]
    sent = [e for e in entries if '"Network.requestWillBeSent"' in e]
    assert sent and not [e for e in sent if '"url":"http' in e]
    assert "broken" not in browser.title


def pages(folder):
    return (
        folder / "db" / "report.html",
        folder / "report.html",
        folder / "against" / against.PAGE,
    )


def wait(browser, condition):
    return WebDriverWait(browser, 10).until(lambda _: condition())


def rows(browser, table="labels"):
    script = """return [...document.querySelectorAll(`[data-table=${arguments[0]}] tbody tr`)].map(
        (row) => [...row.cells].map((cell) => cell.textContent))"""
    return browser.execute_script(script, table)


def heading(browser, text):
    buttons = browser.find_elements(By.CSS_SELECTOR, "[data-table] thead button")
    return next(button for button in buttons if button.text.rstrip(" ▼▲") == text)


def panel(browser):
    cells = browser.find_elements(By.CSS_SELECTOR, "[data-of]")
    return {cell.get_attribute("data-of"): cell.text for cell in cells}


TABLES_THAT_FIT = {
    1280: ["table of labels", "table of images", "How to make it again", "Settings"],
    390: ["How to make it again", "Settings", "Common settings", "Settings that differ"],
}


def widths(browser):
    """The width of each table and of its place, with everything unfolded."""
    return browser.execute_script(
        """document.querySelectorAll("details:not(.chart *)").forEach((d) => (d.open = true));
        return Object.fromEntries([...document.querySelectorAll(".scroll")].map(
            (box) => [box.getAttribute("aria-label"), [box.scrollWidth, box.clientWidth]]))"""
    )


def cut_texts(browser):
    """Texts that are wider than their place, which hides what does not fit."""
    return browser.execute_script(
        """return [...document.querySelectorAll("main *:not(.chart *)")].filter((element) =>
            getComputedStyle(element).overflowX === "hidden" &&
            element.scrollWidth > element.clientWidth + 1).map((element) => element.outerHTML)"""
    )


def drawn(browser, name):
    """Scrolls to a chart and returns its marks once they are drawn."""
    place = browser.find_element(By.CSS_SELECTOR, f"[data-chart={name}]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", place)
    return wait(
        browser, lambda: place.find_elements(By.CSS_SELECTOR, "path[aria-label*='label: ']")
    )


def test_the_table_sorts_searches_and_filters(show, folder, scores):
    browser = show(folder / "db" / "report.html")
    per_class = scores[-1]["per_class"]
    shortened = {name: name if len(name) <= 200 else f"{name[:199]}…" for name in NAMES}
    ap = {name: round(100 * per_class[name]["ap"], 2) for name in NAMES}
    heading(browser, "AP %").click()
    expected = sorted(NAMES, key=lambda name: -ap[name])
    assert [row[0] for row in rows(browser)] == [shortened[name] for name in expected]
    heading(browser, "AP %").click()
    expected = sorted(NAMES, key=lambda name: ap[name])
    assert [row[0] for row in rows(browser)] == [shortened[name] for name in expected]
    search = browser.find_element(By.CSS_SELECTOR, "input[type=search]")
    search.send_keys("LABEL 7")
    assert {row[0] for row in rows(browser)} == {"label 7", *(f"label 7{i}" for i in range(7))}
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(Keys.DELETE)
    Select(browser.find_element(By.CSS_SELECTOR, "[data-group]")).select_by_visible_text("tail")
    assert {row[1] for row in rows(browser)} == {"tail"}
    assert len(rows(browser)) == sum(entry["group"] == "tail" for entry in per_class.values())
    browser.find_element(By.CSS_SELECTOR, "[data-flag=never]").click()
    never = [
        name
        for name, entry in per_class.items()
        if entry["group"] == "tail" and scores[-1]["curves"][name]["given"]
        and entry["at_threshold"]["precision"] == entry["at_threshold"]["recall"] == 0
    ]  # fmt: skip
    shown = [row[0] for row in rows(browser)]
    assert NAMES[-3] in shown and set(shown) <= set(never)
    assert browser.find_element(By.CSS_SELECTOR, "output").text == f"{len(shown)} of 80"


def test_the_threshold_moves_the_numbers_of_the_scores(show, folder, scores):
    browser = show(folder / "db" / "report.html")
    browser.find_element(By.CSS_SELECTOR, "[data-table] tbody tr[data-row='3'] button").click()
    assert browser.find_element(By.CSS_SELECTOR, "[data-name]").text == "label 3"
    assert browser.current_url.endswith("#label-3")
    of_class, curve = scores[-1]["per_class"]["label 3"], scores[-1]["curves"]["label 3"]
    shown, at = panel(browser), of_class["at_threshold"]
    assert shown["threshold"] == "0.4000"
    assert shown["precision"] == f"{100 * at['precision']:.2f} %"
    assert shown["recall"] == f"{100 * at['recall']:.2f} %"
    assert shown["f1"] == f"{100 * at['f1']:.2f} %"
    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    for key, point in ((Keys.HOME, -1), (Keys.END, 0), (Keys.ARROW_LEFT, 1), (Keys.ARROW_LEFT, 2)):
        slider.send_keys(key)
        shown = panel(browser)
        assert shown["precision"] == f"{100 * curve['precision'][point]:.2f} %"
        assert shown["recall"] == f"{100 * curve['recall'][point]:.2f} %"
        assert shown["given"] == str(curve["given"][point])
        wrong = curve["given"][point] * (1 - curve["precision"][point])
        assert shown["wrong"] == str(round(wrong))
    browser.find_element(By.CSS_SELECTOR, "[data-reset]").click()
    assert panel(browser)["threshold"] == "0.4000"
    # Its pictures are those of test images; a link of its neighbors leads to another label.
    pictures = browser.find_elements(By.CSS_SELECTOR, "[data-images] img")
    assert pictures and all(p.get_attribute("naturalWidth") == "60" for p in pictures[:4])
    browser.find_element(By.CSS_SELECTOR, "[data-others] button").click()
    wait(browser, lambda: not browser.current_url.endswith("#label-3"))
    chosen = int(browser.current_url.rpartition("-")[2])
    assert browser.find_element(By.CSS_SELECTOR, "[data-name]").text == NAMES[chosen]


def test_a_dot_tells_its_label_and_chooses_it(show, folder):
    browser = show(folder / "db" / "report.html")
    dot = next(
        mark
        for mark in drawn(browser, "average_precision")
        if "label: label 12;" in mark.get_attribute("aria-label")
    )
    webdriver.ActionChains(browser).move_to_element(dot).perform()
    tooltip = wait(
        browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#vg-tooltip-element.visible")
    )
    assert "label 12" in tooltip[0].text and "average precision" in tooltip[0].text
    webdriver.ActionChains(browser).click(dot).perform()
    wait(browser, lambda: browser.current_url.endswith("#label-12"))
    assert browser.find_element(By.CSS_SELECTOR, "[data-name]").text == "label 12"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_and_every_chart_is_drawn(show, folder, width, scheme):
    for page in pages(folder):
        browser = show(page, width, scheme)
        places = browser.find_elements(By.CSS_SELECTOR, "[data-chart]")
        for place in places:
            browser.execute_script("arguments[0].scrollIntoView()", place)
            wait(browser, lambda p=place: p.find_elements(By.CSS_SELECTOR, ".marks"))
        root = browser.find_element(By.TAG_NAME, "html")
        assert int(root.get_property("scrollWidth")) <= width
        assert cut_texts(browser) == []
        # Tables of numbers may be wider than a phone.
        too_wide = [name for name, (shown, place) in widths(browser).items() if shown > place]
        assert not {*too_wide} & {*TABLES_THAT_FIT[width]}
        background = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background")
        assert ("22, 24, 29" if scheme == "dark" else "255, 255, 255") in background


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(show, folder, scheme):
    axe = pytest.importorskip("axe_selenium_python", reason="axe-selenium-python is not installed")
    for page in pages(folder):
        audit = axe.Axe(show(page, scheme=scheme))
        audit.inject()
        # Vega gives its charts the roles of WAI-ARIA Graphics, which this version does not know.
        found = audit.run({"exclude": [[".chart"]]})
        faults = [(fault["id"], fault["nodes"][0]["html"]) for fault in found["violations"]]
        assert faults == [] and len(found["passes"]) > 20


def test_what_headings_mean_and_settings_are_reached_by_touch_and_by_keyboard(show, folder):
    for page in pages(folder):
        browser = show(page, 390)
        assert "Point at" not in browser.find_element(By.TAG_NAME, "body").text
        for table in browser.find_elements(By.CSS_SELECTOR, "[data-table]"):
            summary = table.find_element(By.CSS_SELECTOR, "details summary")
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)
            touch(browser, summary)
            listed = [term.text for term in table.find_elements(By.CSS_SELECTOR, "dl dt")]
            headings = table.find_elements(By.CSS_SELECTOR, "thead button")
            shown = [heading.text for heading in headings if heading.is_displayed()]
            assert set(shown) - set(listed) <= {"label", "image"} and len(listed) > 2
            assert all(d.text for d in table.find_elements(By.CSS_SELECTOR, "dl dd"))
            summary.send_keys(Keys.ENTER)
            assert not table.find_element(By.CSS_SELECTOR, "dl").is_displayed()


def touch(browser, element):
    where = browser.execute_script(
        "const box = arguments[0].getBoundingClientRect();"
        "return {x: box.x + box.width / 2, y: box.y + box.height / 2}",
        element,
    )
    for kind, points in (("touchStart", [where]), ("touchEnd", [])):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def test_a_mark_tells_its_label_when_it_is_touched(show, folder):
    browser = show(folder / "db" / "report.html", 390)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    touch(browser, drawn(browser, "confusion")[0])
    tooltip = wait(
        browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#vg-tooltip-element.visible")
    )
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert "missed label" in tooltip[0].text


def test_more_columns_are_shown_on_demand(show, folder):
    browser = show(folder / "against" / against.PAGE)
    table = browser.find_element(By.CSS_SELECTOR, "[data-table=labels]")
    assert not [h for h in table.find_elements(By.TAG_NAME, "th") if h.text == "recall %, new"]
    table.find_element(By.CSS_SELECTOR, "[data-more]").click()
    heading(browser, "recall %, new").click()
    recalls = [float(row[-9]) for row in rows(browser)]
    assert recalls == sorted(recalls, reverse=True)


def test_a_comparison_links_the_page_of_its_run(show, folder, scores):
    browser = show(folder / "report.html")
    heading(browser, "db: gain").click()
    found = rows(browser, "gains")
    gains = [float(row[-1].replace("−", "-").replace(",", "")) for row in found]
    assert gains == sorted(gains, reverse=True)
    links = browser.find_elements(By.CSS_SELECTOR, "a[href$='report.html']")
    assert len(links) == 1  # erm has no page
    links[0].click()
    wait(browser, lambda: browser.title == "A run")


def test_a_change_of_models_is_found_by_label_and_by_image(show, folder):
    path = folder / "against" / against.PAGE
    content = json.loads((path.with_name(against.DATA)).read_text())
    browser = show(path)
    browser.find_element(By.CSS_SELECTOR, "[data-flag=gained]").click()
    gained = [name for name, row in content["labels"].items() if row["verdict"] == "gain"]
    assert gained and [row[0] for row in rows(browser)] == gained
    dot = next(
        mark
        for mark in drawn(browser, "against_change")
        if f"label: {gained[0]};" in mark.get_attribute("aria-label")
    )
    webdriver.ActionChains(browser).click(dot).perform()
    wait(browser, lambda: "#label-" in browser.current_url)
    assert browser.find_element(By.CSS_SELECTOR, "[data-name]").text == gained[0]
    row = content["labels"][gained[0]]
    cells = browser.find_elements(By.CSS_SELECTOR, "[data-cell^='F1 %']")
    assert [cell.text for cell in cells] == [f"{row[f'F1 %, {m}']:.2f}" for m in ("old", "new")]
    assert "beyond chance" in browser.find_element(By.CSS_SELECTOR, "[data-facts]").text
    pictures = browser.find_elements(By.CSS_SELECTOR, "[data-images] img")
    assert len(pictures) == sum(min(row[kind], 4) for kind in KINDS)
    with open(path.with_name(against.IMAGES), newline="", encoding="utf-8") as file:
        expected = {row["image"] for row in csv.DictReader(file)}
    shown = rows(browser, "images")
    assert {row[0] for row in shown} <= expected and len(shown) == min(len(expected), 200)
    assert (
        browser.find_elements(By.TAG_NAME, "output")[1].text
        == f"{len(expected)} of {len(expected)}"
    )
    better = browser.find_elements(By.CSS_SELECTOR, "[data-gallery=better] bdi")
    assert better[0].text == next(row[0] for row in shown if int(row[5]) > 0)
    search = browser.find_elements(By.CSS_SELECTOR, "input[type=search]")[1]
    search.send_keys(shown[3][0])
    assert shown[3][0] in [row[0] for row in rows(browser, "images")]
