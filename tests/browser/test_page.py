"""The web page in headless Chromium, served by the real binary.

Chromium, its driver and Selenium come from Debian. Screenshots go to build/browser/."""

import base64
import functools
import http.server
import importlib.util
import json
import re
import shutil
import threading
import zlib

import pytest

try:
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait
except ImportError:
    webdriver = None

requests = pytest.importorskip("requests")

# The server's class lives beside the end-to-end tests; both folders have no package, hence by path.
_path = __file__.replace("browser/test_page.py", "e2e/conftest.py")
_spec = importlib.util.spec_from_file_location("e2e_support", _path)
e2e = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(e2e)
ROOT, Server, image_bytes, start = e2e.ROOT, e2e.Server, e2e.image_bytes, e2e.start

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [name for name, there in (("chromium", CHROMIUM), ("chromium-driver", DRIVER),
                                    ("python3-selenium", webdriver)) if not there]
pytestmark = pytest.mark.skipif(bool(MISSING), reason="THE PAGE IS NOT TESTED, missing: %s" % ", ".join(MISSING))

COFFEE, CAT = ROOT / "tests/data/coffee.png", ROOT / "tests/data/chelsea.png"
SHOTS = ROOT / "build/browser"
PATIENCE = 120  # seconds after which a wait in vain ends; nothing here measures time
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --disable-extensions --mute-audio""".split()


@pytest.fixture(scope="module")
def server():
    it = Server()
    yield it
    it.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS + ["--user-data-dir=%s" % tmp_path_factory.mktemp("chromium")]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(service=Service(DRIVER), options=options)
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


class Page:
    """The page in the browser, and what the browser reports about it."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url
        self.requests = []
        self.refused = []  # what the test expects to fail: statuses, net::ERR_...
        self.open_tab()

    def open_tab(self):
        self.view(1280, 900)
        self.browser.get(self.url + "/")
        self.wait(lambda: self.one("#serving a"))

    def view(self, width, height, scheme="light"):
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                     mobile=width < 500)
        self.command("Emulation.setTouchEmulationEnabled", enabled=width < 500)
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def command(self, name, **parameters):
        return self.browser.execute_cdp_cmd(name, parameters)

    def script(self, text, *arguments):
        return self.browser.execute_script(text, *arguments)

    def all(self, selector, inside=None):
        return (inside or self.browser).find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector, inside=None):
        found = self.all(selector, inside)
        return found[0] if found else None

    def texts(self, selector, inside=None):
        # Not .text: what is hidden in a closed part counts too.
        return [node.get_property("textContent") for node in self.all(selector, inside)]

    def wait(self, condition):
        return WebDriverWait(self.browser, PATIENCE, poll_frequency=0.05).until(lambda _: condition())

    def answered(self, count):
        """Wait until there are that many cards and every one has its answer."""
        self.wait(lambda: self.script("return document.querySelectorAll('article[aria-busy=false]').length") == count
                  and len(self.all("article")) == count)
        return self.all("article")

    def choose(self, *files):
        self.one("#file").send_keys("\n".join(str(file) for file in files))

    def result(self, card):
        """The JSON that a card shows."""
        return json.loads(self.texts("details:last-of-type pre", card)[0])

    def set(self, name, value):
        field = self.one("#" + name)
        if field.tag_name == "select":
            Select(field).select_by_value(value)
        else:
            field.send_keys(Keys.CONTROL, "a", Keys.NULL, value, Keys.ENTER)

    def shoot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        image = self.command("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        (SHOTS / (name + ".png")).write_bytes(base64.b64decode(image))

    def sent(self):
        """The URLs that the page has asked for since it was opened."""
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
        return self.requests

    def check(self):
        """Nothing in the console but the statuses that were expected, and no request to anywhere else."""
        bad = []
        for entry in self.browser.get_log("browser"):
            refused = re.search(r"Failed to load resource: .*?(\d+|net::\w+)", entry["message"])
            if not (refused and refused.group(1) in map(str, self.refused)):
                bad.append(entry["message"])
        assert not bad
        assert all(url.startswith((self.url + "/", "blob:" + self.url + "/", "data:")) for url in self.sent()), self.sent()


@pytest.fixture
def page_of(browser):
    """Open the page of a server: page_of(server)."""
    opened = []

    def run(it):
        browser.get("about:blank")
        for log in ("browser", "performance"):
            browser.get_log(log)
        opened.append(Page(browser, it.url))
        return opened[-1]

    yield run
    for it in opened:
        it.check()


@pytest.fixture
def page(page_of, server):
    return page_of(server)


def percent(probability):
    return "<0.1%" if probability < 0.0005 else "%.1f%%" % (100 * probability)


def same_as_api(page, card, server, data, query="?top_k=5"):
    """What a card shows is what the API answers to the same bytes."""
    answer = server.classify(data, query).json()
    shown = page.result(card)
    for key in ("model", "image", "input", "predictions", "stages"):
        assert shown[key] == answer[key]
    rows = [[span.text for span in page.all("span", row)] for row in page.all("ol li", card)]
    assert rows == [[p["label"], percent(p["probability"])] for p in answer["predictions"]]
    stages = [[cell.text for cell in page.all("th, td:not(.map)", row)] for row in page.all("tbody tr", card)]
    expected = [{"name": "input", "type": "image", "shape": answer["input"]["shape"]}] + answer["stages"]
    assert stages == [[s["name"], s["type"], str(s["shape"])] for s in expected]
    for name in ("queue", "decode", "preprocess", "inference", "total"):
        assert re.search(r"\b%s \d[\d.]* ms" % name, page.one(".key", card).text)
    facts = dict(zip(page.texts("dt", card), page.texts("dd", card)))
    assert facts["model"] == answer["model"]
    assert facts["file"].endswith("%(width)d × %(height)d" % answer["image"])
    assert facts["network saw"].startswith("%d × %d (" % tuple(answer["input"]["shape"][:1:-1]))
    return answer


def test_loads_by_itself_and_says_which_model_serves(page, server):
    model, = server.get("/v1/models").json()["models"]
    assert [url for url in page.sent() if not url.startswith("data:")] == [page.url + "/", page.url + "/v1/models"]
    serving = page.one("#serving").text
    assert model["name"] in serving and model["kernels"] in serving and model["precision"] in serving
    assert "demo model" in serving
    assert page.one("#note").text.startswith("Demo model: ")
    assert server.get("/v1/models").json()["note"] in page.one("#note").text
    assert not page.one("#model").is_displayed()  # there is nothing to choose
    assert page.url in page.one("#code pre").text


def test_labels_that_the_model_knows(page, server):
    model = server.get("/v1/models").json()["models"][0]
    labels = server.get("/v1/models/" + model["name"]).json()["labels"]
    summary = page.one("#knows summary")
    assert str(model["classes"]) in summary.text
    summary.click()
    page.wait(lambda: page.texts("#labels span") == labels)
    page.one("#filter").send_keys("BEAR")
    page.wait(lambda: [node.text for node in page.all("#labels span") if node.is_displayed()]
              == [label for label in labels if "bear" in label.lower()])


def test_choosing_a_file_shows_what_the_api_answers(page, server):
    page.choose(COFFEE)
    card, = page.answered(1)
    answer = same_as_api(page, card, server, COFFEE.read_bytes())
    assert page.one("h2", card).text == "coffee.png"
    assert page.script("return arguments[0].naturalWidth", page.one("img", card)) == answer["image"]["width"]
    assert page.one("#status").get_property("textContent") == "coffee.png: %s, %s" % (
        answer["predictions"][0]["label"], percent(answer["predictions"][0]["probability"]))


def test_several_files_keep_their_order_and_the_newest_stay_on_top(page, server):
    page.choose(COFFEE, CAT)
    page.answered(2)
    page.choose(ROOT / "tests/data/images/orientation-6.jpg")
    cards = page.answered(3)
    assert page.texts("h2", page.one("#results")) == ["orientation-6.jpg", "coffee.png", "chelsea.png"]
    same_as_api(page, cards[2], server, CAT.read_bytes())
    page.one(".remove", cards[1]).click()
    assert page.texts("h2", page.one("#results")) == ["orientation-6.jpg", "chelsea.png"]


def test_drag_and_drop(page, server):
    data = {"items": [], "files": [str(COFFEE), str(CAT)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        page.command("Input.dispatchDragEvent", type=kind, x=640, y=300, data=data)
    page.wait(lambda: page.one(".drop.over"))
    page.command("Input.dispatchDragEvent", type="drop", x=640, y=300, data=data)
    cards = page.answered(2)
    assert not page.one(".drop.over")
    same_as_api(page, cards[0], server, COFFEE.read_bytes())
    same_as_api(page, cards[1], server, CAT.read_bytes())


def test_paste(page, server):
    page.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    failed = page.browser.execute_async_script("""
        const [text, done] = arguments, bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
        navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})])
            .then(() => done(null), error => done(String(error)));""", base64.b64encode(COFFEE.read_bytes()).decode())
    assert failed is None
    page.one("body").send_keys(Keys.CONTROL, "v")
    card, = page.answered(1)
    same_as_api(page, card, server, COFFEE.read_bytes())  # the clipboard encodes anew, the pixels are the same


def test_settings_change_the_request_and_what_is_shown(page, server):
    page.choose(COFFEE)
    page.answered(1)
    for name, value, query in (("size", "crop", "?size=crop&top_k=5"), ("top_k", "3", "?size=crop&top_k=3"),
                               ("size", "native", "?size=native&top_k=3"), ("size", "", "?top_k=3")):
        page.set(name, value)
        page.wait(lambda: page.url + "/v1/classify" + query in page.sent())
        card, = page.answered(1)
        same_as_api(page, card, server, COFFEE.read_bytes(), query)
        assert query in page.one("#code pre").text


def test_the_last_setting_wins(page, server, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(image_bytes(3000, 2000, "PNG", "RGB"))
    page.choose(large)
    page.script("""for (const [id, value] of [["size", "fit"], ["top_k", 4], ["size", "crop"], ["top_k", 2]]) {
                       document.getElementById(id).value = value;
                       document.getElementById(id).dispatchEvent(new Event("change"));
                   }""")
    card, = page.answered(1)
    same_as_api(page, card, server, large.read_bytes(), "?size=crop&top_k=2")
    posts = [url for url in page.sent() if "/v1/classify" in url]
    assert len(posts) <= 2  # what became outdated while it waited was never asked


@pytest.mark.parametrize("typed, sent", [("0", 1), ("100000", 64), ("-3", 1), ("2.4", 2), (Keys.BACKSPACE, 5)])
def test_number_of_labels_stays_in_range(page, typed, sent):
    page.set("top_k", typed)
    page.wait(lambda: page.one("#top_k").get_property("value") == str(sent))
    page.choose(COFFEE)
    card, = page.answered(1)
    assert len(page.all("ol li", card)) == sent


def test_parts_stay_open_or_closed_when_the_answer_changes(page):
    page.choose(COFFEE)
    card, = page.answered(1)
    page.one("details summary", card).click()
    page.set("top_k", "2")
    page.wait(lambda: len(page.all("ol li")) == 2)
    card, = page.answered(1)
    assert page.one("details", card).get_property("open") is False


@pytest.mark.parametrize("name, status", [("notes.txt", 415), ("cut.jpg", 422), ("empty.png", 400), ("bomb.png", 413)])
def test_errors_are_the_servers_sentences(page, server, tmp_path, name, status):
    bomb = bytearray(image_bytes(kind="PNG"))
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    data = {"notes.txt": b"no picture\n", "cut.jpg": image_bytes(600, 400)[:900], "empty.png": b"",
            "bomb.png": bytes(bomb)}[name]
    (tmp_path / name).write_bytes(data)
    page.refused.append(status)
    reply = server.classify(data)
    assert reply.status_code == status
    error = reply.json()["error"]
    page.choose(tmp_path / name)
    card, = page.answered(1)
    alert = page.one("[role=alert]", card)
    assert alert.text.split("\n") == [error["message"] + ".", "%d %s" % (status, error["code"])]
    assert not page.one("ol", card)
    page.choose(COFFEE)  # an error is not the end
    same_as_api(page, page.answered(2)[0], server, COFFEE.read_bytes())


def test_a_body_over_the_limit(page_of, start):
    server = start(LIMITS_MAX_BODY_BYTES=100000)
    page = page_of(server)
    page.refused.append(413)
    page.choose(COFFEE)
    card, = page.answered(1)
    assert "413 body_too_large" in page.one("[role=alert]", card).text


def test_a_folder_is_not_a_file(page):
    page.refused.append("net::ERR_FILE_NOT_FOUND")  # no preview either
    page.command("Input.dispatchDragEvent", type="dragEnter", x=640, y=300,
                 data={"items": [], "files": [str(ROOT / "tests/data")], "dragOperationsMask": 1})
    page.command("Input.dispatchDragEvent", type="drop", x=640, y=300,
                 data={"items": [], "files": [str(ROOT / "tests/data")], "dragOperationsMask": 1})
    card, = page.answered(1)
    assert page.one("[role=alert]", card).text == "this cannot be read as a file."


def test_the_server_goes_away_and_comes_back(page, server):
    def network(offline):
        page.command("Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1,
                     uploadThroughput=-1)

    network(offline=True)
    page.refused.append("net::ERR_INTERNET_DISCONNECTED")
    page.choose(COFFEE)
    card, = page.answered(1)
    network(offline=False)
    assert page.one("[role=alert]", card).text.startswith("no answer from the server")
    next(button for button in page.all("button", card) if button.text == "Try again").click()
    page.wait(lambda: page.all("ol li", card))
    same_as_api(page, card, server, COFFEE.read_bytes())


def test_a_server_that_ended(page_of, start):
    server = start()
    page = page_of(server)
    page.refused += ["net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET"]
    server.signal()
    server.wait()
    page.choose(COFFEE)
    card, = page.answered(1)
    assert page.one("[role=alert]", card).text.startswith("no answer from the server")


def test_text_from_outside_is_never_markup(page, tmp_path):
    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_bytes(COFFEE.read_bytes())
    page.choose(tmp_path / name)
    card, = page.answered(1)
    assert page.one("h2", card).text == name
    assert len(page.all("img", card)) == 1


def test_old_cards_leave(page, tmp_path):
    files = [tmp_path / ("%02d.png" % i) for i in range(26)]
    for file in files:
        file.write_bytes(image_bytes(kind="PNG"))
    page.choose(*files)
    page.answered(24)
    assert page.texts("h2", page.one("#results")) == [file.name for file in files[:24]]


def test_several_models(page_of, start, tmp_path):
    config = tmp_path / "two.json"
    config.write_text(json.dumps({"models": [
        {"name": name, "description": str(ROOT / "config/models/demo64.json"),
         "weights": str(ROOT / "config/weights/demo64.safetensors")} for name in ("first", "second")]}))
    server = start(("--config", str(config)))
    page = page_of(server)
    assert page.one("#model").is_displayed()
    assert not page.one("#note").is_displayed()
    page.choose(COFFEE)
    card, = page.answered(1)
    same_as_api(page, card, server, COFFEE.read_bytes(), "?model=first&top_k=5")
    page.set("model", "second")
    assert "second" in page.one("#serving").text
    page.wait(lambda: page.url + "/v1/classify?model=second&top_k=5" in page.sent())
    card, = page.answered(1)
    same_as_api(page, card, server, COFFEE.read_bytes(), "?model=second&top_k=5")


# --- another site's page ---------------------------------------------------------------------------------

FETCH = """
const [url, text, done] = arguments, bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
fetch(url, {method: "POST", body: new Blob([bytes], {type: "image/png"})})
    .then(async reply => done([reply.status, await reply.json(), reply.headers.get("Server-Timing")]))
    .catch(error => done([error.name]));"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def elsewhere(tmp_path):
    """A page of another origin."""
    (tmp_path / "index.html").write_text("<!doctype html><link rel=icon href=data:,><title>elsewhere</title>")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield "http://127.0.0.1:%d" % site.server_address[1]
        site.shutdown()


def fetch_from(browser, site, server, data):
    browser.get(site)
    assert browser.title == "elsewhere"
    return browser.execute_async_script(FETCH, server.url + "/v1/classify?top_k=2", base64.b64encode(data).decode())


def test_another_origin_reads_the_answer_when_it_may(browser, elsewhere, start):
    for origin in ("*", elsewhere):
        server = start(SERVER_CORS_ORIGIN=origin)
        status, body, server_timing = fetch_from(browser, elsewhere, server, COFFEE.read_bytes())
        assert status == 200
        assert body["predictions"] == server.classify(COFFEE.read_bytes(), "?top_k=2").json()["predictions"]
        assert "inference;dur=" in server_timing
        status, body, _ = fetch_from(browser, elsewhere, server, b"text")  # errors can be read as well
        assert (status, body["error"]["code"]) == (415, "not_an_image")


def test_another_origin_reads_nothing_when_it_may_not(browser, elsewhere, start):
    for origin in ("", "https://example.org"):
        server = start(SERVER_CORS_ORIGIN=origin)
        assert fetch_from(browser, elsewhere, server, COFFEE.read_bytes()) == ["TypeError"]


# --- keyboard, names, contrast, narrow screens -----------------------------------------------------------

def test_everything_works_by_keyboard(page):
    page.choose(COFFEE)
    page.answered(1)
    page.script("document.activeElement.blur()")
    order = []
    for _ in range(30):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()  # send_keys to a file input chooses files
        active = page.browser.switch_to.active_element
        if active.tag_name == "body":
            break
        style = page.script("""const e = arguments[0], s = getComputedStyle(e.id === "file" ? e.nextElementSibling : e);
                               return s.outlineStyle + " " + s.outlineWidth""", active)
        assert style == "solid 3px", active.get_attribute("outerHTML")  # where the focus is can be seen
        order.append(active.get_attribute("id") or active.accessible_name or active.tag_name)
    wanted = ["demo64", "file", "size", "top_k", "Remove coffee.png", "API description"]
    assert [name for name in order if name in wanted] == wanted
    part = page.one("article details")
    page.one("summary", part).send_keys(Keys.ENTER)
    assert part.get_property("open") is False
    page.one(".remove").send_keys(Keys.ENTER)
    page.wait(lambda: not page.all("article"))
    assert page.browser.switch_to.active_element.get_attribute("id") == "file"


def test_everything_has_a_name(page):
    page.choose(COFFEE)
    page.answered(1)
    assert page.one("html").get_attribute("lang") == "en"
    for node in page.all("input, select, button, a, summary, img, article, section"):
        if page.script("return arguments[0].checkVisibility()", node):
            assert node.accessible_name.strip(), node.get_attribute("outerHTML")[:200]
    assert page.one("#size").accessible_name == "Input size"
    assert page.one("#top_k").accessible_name == "Labels shown"
    assert page.one("#file").accessible_name.startswith("Drop photos here")
    assert [len(page.all(name)) for name in ("h1", "main", "body > header", "body > footer")] == [1, 1, 1, 1]
    assert page.one("[role=status]")
    ids = page.script("return [...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids))


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function over(colour, below) {  // a colour as sRGB bytes, on what lies below it
    canvas.fillStyle = "rgb(" + below.join() + ")"; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
function luminance(c) {
    const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function ratio(a, b) {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
}
function background(node) {
    if (!node) return [255, 255, 255];
    return over(getComputedStyle(node).backgroundColor, background(node.parentElement));
}
const bad = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let count = 0;
for (let text; (text = walker.nextNode());) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || ["SCRIPT", "NOSCRIPT", "OPTION"].includes(node.tagName)) continue;
    const papers = [background(node)], bar = node.closest("li")?.querySelector("i");
    if (bar) papers.push(background(bar));
    for (const paper of papers) {
        const r = ratio(over(getComputedStyle(node).color, paper), paper);
        count++;
        if (r < 4.5) bad.push([text.data, node.className, r.toFixed(2)]);
    }
}
return [count, bad];"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844), (320, 568)])
def test_every_screen(page, tmp_path, width, height, scheme):
    page.view(width, height, scheme)
    page.shoot("%s-%d-empty" % (scheme, width))
    assert ("Drop photos" in page.one(".drop").text) == (width > 500)  # nothing can be dropped on a touch screen
    (tmp_path / "notes.txt").write_text("no picture")
    page.refused.append(415)
    page.choose(CAT, tmp_path / "notes.txt", COFFEE)
    page.answered(3)
    page.one("#knows summary").click()
    page.wait(lambda: page.all("#labels span"))
    page.shoot("%s-%d-results" % (scheme, width))
    assert page.script("return document.documentElement.scrollWidth") == width  # nothing to scroll sideways
    inside = page.script("""return [...document.querySelectorAll("select, input, button, .drop, article, img, ol li, td, th")]
        .filter(n => n.checkVisibility() && n.getBoundingClientRect().right > innerWidth).map(n => n.outerHTML)""")
    assert not inside
    count, bad = page.script(CONTRAST)
    assert count > 50 and not bad
