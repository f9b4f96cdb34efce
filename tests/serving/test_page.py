"""The server's page in a real browser: results, mouse, keyboard, paste and errors."""

import base64
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import keras
import numpy as np
import pytest
from PIL import Image

from keras_transfer.data.reading import DecodedImage, read_pixels
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import as_trained
from keras_transfer.export.saved_model.writer import export_saved_model
from keras_transfer.inference.explanation import explainer
from keras_transfer.serving.app import build_app
from keras_transfer.serving.service import Service
from keras_transfer.serving.settings import Settings
from keras_transfer.tasks.single_label import SingleLabel

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the server's packages are not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
expect = sync_api.expect

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 30_000
NAMES = ("temple", '<b>naïve</b> & "flower\'s"', "path " + "that goes on and on " * 12)
MANY = ("<img src=x onerror=\"document.title='broken'\">", "x" * 255) + tuple(
    f"class {number:04d}" for number in range(998)
)
CARD = {
    "created": "2026-05-04T03:02:01+00:00",
    "backbone": "resnet50",
    "weights_hash": "0123456789abcdef" * 4,
    "accuracy": 0.9375,
    "accuracy_interval": [0.871, 0.9712],
    "num_test": 96,
    "data": {"source": "folder", "path": "<i>photos</i>", "num_train": 1234, "num_val": 56},
    "per_class": {
        name: {"recall": 0.9, "precision": 0.8, "f1": 0.85, "support": 32} for name in NAMES
    },
    "calibration_error": 0.0213,
    "limits": ["It knows <em>these</em> classes & no others."],
}


def export(model: keras.Model, folder: Path, names: tuple[str, ...], card: dict | None) -> Path:
    contract = Contract(
        name="flowers", class_names=names, image_size=32, resize="crop", max_megapixels=1
    )
    export_saved_model(as_trained(model), folder / "1", contract)
    if card is not None:
        full = {"name": "flowers", "version": 1, "class_names": names, **card}
        (folder / "1" / "card.json").write_text(json.dumps(full))
    return folder


def serving(folder: Path, **settings) -> Iterator[str]:
    """The address of a server that runs meanwhile, in a thread."""
    loaded = threading.Event()

    def report(text: str) -> None:
        if text.startswith("Serving version"):
            loaded.set()

    app = build_app(Service(Settings(folder=folder, **settings), report=report))
    server = uvicorn.Server(
        uvicorn.Config(app, http="h11", ws="none", log_config=None, timeout_graceful_shutdown=1)
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert loaded.wait(PATIENCE_MS / 1000)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def model(make_classifier) -> keras.Model:
    return make_classifier(NAMES)


@pytest.fixture(scope="module")
def address(model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = export(model, tmp_path_factory.mktemp("export"), NAMES, CARD)
    yield from serving(folder, max_body_megabytes=0.5, name="renamed")


@pytest.fixture(scope="module")
def address_of_many(make_classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = export(make_classifier(MANY), tmp_path_factory.mktemp("many"), MANY, None)
    yield from serving(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


class Watched:
    """A new page, with its requests and its console messages."""

    def __init__(self, browser: "sync_api.Browser", *, width: int = 1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(PATIENCE_MS)
        self.page = context.new_page()
        self.hosts: set[str | None] = set()
        self.complaints: list[str] = []
        self.asked: set[sync_api.Request] = set()
        self.most_at_once = 0
        self.page.on("request", self._note)
        self.page.on("requestfinished", lambda request: self.asked.discard(request))
        self.page.on("requestfailed", lambda request: self.asked.discard(request))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heed)

    def _note(self, request: "sync_api.Request") -> None:
        self.hosts.add(urlsplit(request.url).hostname)
        if request.url.endswith(":predict"):
            self.asked.add(request)
            self.most_at_once = max(self.most_at_once, len(self.asked))

    def _heed(self, message: "sync_api.ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, address: str) -> "sync_api.Page":
        self.page.goto(address)
        expect(self.page.locator("#about dl")).to_be_visible()
        return self.page

    def answered(self, count: int) -> None:
        busy = self.page.locator(".image[aria-busy=false]")
        expect(busy).to_have_count(count, timeout=PATIENCE_MS)

    def has_no_scroll_to_the_side(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def watched(browser) -> Iterator[Watched]:
    found = Watched(browser)
    yield found
    found.page.context.close()


def square_of(file: Path) -> np.ndarray:
    (image,) = read_pixels([file], image_size=32, resize="crop", max_megapixels=1)
    assert isinstance(image, DecodedImage)
    return image.pixels


def expected(model: keras.Model, file: Path, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [C] and heat [h, w] by the library."""
    probabilities, heat = explainer(model, SingleLabel(()))(square_of(file)[np.newaxis], column)
    return probabilities[0], heat[0]


def canvas(page: "sync_api.Page", number: int) -> np.ndarray:
    """Pixels of the first result's image (0) or heat (1), uint8 [H, W, 4]."""
    # Read from a copy: Chromium complains of a page that reads its own canvas again and again.
    script = """canvas => {
        const copy = new OffscreenCanvas(canvas.width, canvas.height);
        const context = copy.getContext('2d', {willReadFrequently: true});
        context.drawImage(canvas, 0, 0);
        const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, ...data]; }"""
    width, height, *data = page.locator(".image canvas").nth(number).evaluate(script)
    return np.array(data, np.uint8).reshape(height, width, 4)


def transfer(page: "sync_api.Page", *files: Path) -> "sync_api.JSHandle":
    """What the browser would hand over with dropped or pasted files."""
    contents = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
    script = """files => { const transfer = new DataTransfer();
        for (const [name, content] of files) transfer.items.add(new File(
            [Uint8Array.from(atob(content), letter => letter.charCodeAt(0))], name));
        return transfer; }"""
    return page.evaluate_handle(script, contents)


def test_chosen_image_gets_the_model_s_classes_and_heat(watched, address, model, photos: Path):
    page, file = watched.open(address), photos / "00.jpg"
    page.set_input_files("#files", file)
    watched.answered(1)
    probabilities, heat = expected(model, file, -1)
    order = np.argsort(-probabilities)
    bars = page.locator(".bar")
    assert bars.locator(".name").all_inner_texts() == [NAMES[column].strip() for column in order]
    shares = bars.locator(".share").all_inner_texts()
    assert shares == [
        SingleLabel(NAMES).format_output(float(probabilities[column])) for column in order
    ]
    assert page.locator(".result h2").inner_text() == NAMES[order[0]].strip()
    assert "Predicted in" in page.locator(".last").inner_text()
    assert page.locator("#announcement").inner_text().startswith("00.jpg: ")
    np.testing.assert_array_equal(canvas(page, 0)[..., :3], square_of(file))
    painted = canvas(page, 1)
    smooth = Image.fromarray(heat).resize(painted.shape[1::-1], Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), 0, 1)
    np.testing.assert_allclose(painted[..., 3] / 255, 0.3 + 0.45 * strength, rtol=0, atol=0.01)
    hottest, coldest = strength > 0.99, strength < 0.01
    assert painted[hottest][:, :3].mean() > 180 > 30 > painted[coldest][:, :3].mean()
    assert watched.complaints == []
    assert watched.hosts <= {"127.0.0.1", None}


def test_heat_slider_fades_between_the_image_and_its_heat(watched, address, photos: Path):
    page = watched.open(address)
    page.set_input_files("#files", photos / "00.jpg")
    watched.answered(1)
    layers = page.locator(".image canvas")
    # At first the colours of the image are seen under the heat.
    expect(layers.nth(1)).to_have_css("opacity", "0.4")
    for value, opacity in (("0", "0"), ("40", "0.4"), ("100", "1")):
        page.locator("#heat").fill(value)
        assert page.locator("#heat-share").inner_text() == f"{value} %"
        expect(layers.nth(1)).to_have_css("opacity", opacity)
        expect(layers.nth(0)).to_have_css("filter", f"brightness({1 - 0.35 * float(opacity):g})")


def test_keyboard_alone_reaches_another_class(watched, address, model, photos: Path):
    file = photos / "00.jpg"
    # Listened to from the beginning: asked for at the last moment, it may come too late.
    watched.page.on("filechooser", lambda chooser: chooser.set_files(file))
    page = watched.open(address)
    page.keyboard.press("Tab")
    expect(page.locator("#choose")).to_be_focused()
    page.keyboard.press("Enter")
    watched.answered(1)
    for target in ("#heat", "#clear", ".bar >> nth=0", ".bar >> nth=1"):
        page.keyboard.press("Tab")
        expect(page.locator(target)).to_be_focused()
        assert (
            page.locator(target).evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
        )
    before = canvas(page, 1)
    page.keyboard.press("Enter")
    second = page.locator(".bar").nth(1)
    expect(second).to_have_attribute("aria-pressed", "true", timeout=PATIENCE_MS)
    expect(second).to_be_focused()
    expect(page.locator(".bar").nth(0)).to_have_attribute("aria-pressed", "false")
    probabilities, _ = expected(model, file, -1)
    column = int(np.argsort(-probabilities)[1])
    _, heat = expected(model, file, column)
    after = canvas(page, 1)
    smooth = np.asarray(Image.fromarray(heat).resize(after.shape[1::-1], Image.Resampling.BICUBIC))
    wanted = 0.3 + 0.45 * np.clip(smooth, 0, 1)
    np.testing.assert_allclose(after[..., 3] / 255, wanted, rtol=0, atol=0.01)
    assert np.abs(after.astype(int) - before).max() > 20
    label = page.locator(".image [role=img]").get_attribute("aria-label")
    assert NAMES[column].strip() in label
    assert watched.complaints == []


def test_several_dropped_and_pasted_images_are_shown_in_their_order(watched, address, photos: Path):
    page = watched.open(address)
    files = sorted(photos.iterdir())[:7]  # one of each kind
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer(page, *files)})
    watched.answered(7)
    assert watched.most_at_once <= 2
    assert page.locator(".file-name").all_inner_texts() == [file.name for file in files]
    page.evaluate(
        "data => document.dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))",
        transfer(page, photos / "07.jpg"),
    )
    watched.answered(8)
    assert page.locator(".file-name").first.inner_text() == "07.jpg"
    assert page.locator(".bar").count() == 8 * 3
    page.locator("#clear").click()
    expect(page.locator(".result")).to_have_count(0)
    expect(page.locator("#choose")).to_be_focused()
    assert watched.complaints == []


def test_invalid_file_shows_its_reason_and_does_not_affect_others(
    watched, address, photos: Path, tmp_path: Path
):
    page = watched.open(address)
    (tmp_path / "<b>notes.jpg").write_text("not an image")
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "huge.png")
    page.set_input_files(
        "#files", [tmp_path / "<b>notes.jpg", photos / "00.jpg", tmp_path / "huge.png"]
    )
    watched.answered(3)
    results = page.locator(".result")
    expect(results.nth(0).locator(".problem")).to_contain_text("Not an image (JPEG, PNG")
    expect(results.nth(0)).to_contain_text("<b>notes.jpg")
    expect(results.nth(1).locator(".bar")).to_have_count(3)
    expect(results.nth(2).locator(".problem")).to_contain_text("too large for")
    expect(results.nth(2).get_by_role("button", name="Try again")).to_be_visible()


def test_a_server_that_does_not_respond_is_reported_and_tried_again(watched, address, photos: Path):
    page = watched.open(address)
    page.set_input_files("#files", photos / "00.jpg")
    watched.answered(1)
    page.context.set_offline(True)
    page.locator(".bar").nth(2).click()
    expect(page.locator(".problem")).to_have_text(
        "The server does not respond. Is it still running?"
    )
    page.set_input_files("#files", photos / "07.jpg")
    expect(page.locator(".problem")).to_have_count(2)
    assert page.locator("#announcement").inner_text().endswith("Is it still running?")
    page.context.set_offline(False)
    for _ in range(2):
        page.get_by_role("button", name="Try again").first.click()
        watched.answered(2)
    expect(page.locator(".problem")).to_have_count(0)
    expect(page.locator(".bar.chosen")).to_have_count(2)


def test_card_is_shown_as_text(watched, address):
    page = watched.open(address)
    told = page.locator(".about").inner_text()
    parts = ["93.8 %", "87.1 % to 97.1 %", "96 test images", "<i>photos</i>", "1,234 to train"]
    parts += ["4 May 2026", "weights 0123456789ab", "2.1 %", CARD["limits"][0], "resnet50"]
    for part in parts:
        assert part in told
    assert page.locator("h1").inner_text() == page.title() == "renamed"
    page.locator("summary").click()
    assert page.locator("td").all_inner_texts()[1:4] == ["90 %", "80 %", "32"]
    assert page.locator("main b, aside b, aside i, aside em").count() == 0


def test_thousand_classes_do_not_break_the_page(watched, address_of_many, photos: Path):
    page = watched.open(address_of_many)
    assert "1,000 classes" in page.locator("#subtitle").inner_text()
    page.set_input_files("#files", photos / "00.jpg")
    watched.answered(1)
    bars, more = page.locator(".bar"), page.get_by_role("button", name="more of")
    expect(bars).to_have_count(5)
    for shown in (25, 125, 625, 1000):
        more.press("Enter")
        expect(bars).to_have_count(shown)
    expect(more).to_be_hidden()
    expect(bars.nth(625)).to_be_focused()
    bars.nth(999).press("Enter")
    expect(bars.nth(999)).to_have_attribute("aria-pressed", "true", timeout=PATIENCE_MS)
    page.get_by_role("button", name="and 976 more").click()
    assert page.locator(".chips li").all_inner_texts() == list(MANY)
    assert page.title() == "flowers"
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert watched.has_no_scroll_to_the_side(), width
    assert watched.complaints == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("desktop", {"width": 1280, "color_scheme": "light"}),
        ("phone", {"width": 360, "color_scheme": "light", "has_touch": True}),
        ("dark", {"width": 1280, "color_scheme": "dark"}),
    ],
)
def test_page_fits_and_is_legible_on(kind, options, browser, address, photos: Path, tmp_path: Path):
    watched = Watched(browser, **options)
    page = watched.open(address)
    (tmp_path / "notes.jpg").write_text("not an image")
    files = [photos / "00.jpg", photos / "07.jpg", tmp_path / "notes.jpg"]
    page.set_input_files("#files", files)
    watched.answered(3)
    assert watched.has_no_scroll_to_the_side()
    for place in ("body", ".faint", ".problem", ".bar.chosen", ".main-button", "dt", ".share"):
        assert contrast(page, place) >= 4.5, place
    page.screenshot(path=tmp_path / f"{kind}.png", full_page=True)
    assert (tmp_path / f"{kind}.png").stat().st_size > 20_000
    page.context.close()


def contrast(page: "sync_api.Page", place: str) -> float:
    """Contrast of text with its ground, as the WCAG define it."""
    script = """node => { const own = getComputedStyle(node).color;
        for (; node; node = node.parentElement) {
            const ground = getComputedStyle(node).backgroundColor;
            if (ground !== 'rgba(0, 0, 0, 0)') return [own, ground]; } }"""
    light = []
    for colour in page.locator(place).first.evaluate(script):
        values = np.array([float(part) for part in colour[4:-1].split(",")[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        light.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_outputs_of_other_tasks_are_shown(browser, address, photos: Path):
    """Predictions of a multi-label and of a regression model, put in place of the server's."""
    watched = Watched(browser)
    predictions = [
        {"labels": ["temple"], "probabilities": [0.9, 0.2, 0.4]},
        {"values": [1.5, -2.0, 40.0], "unit": "cm"},
    ]

    def fulfil(route: "sync_api.Route") -> None:
        route.fulfill(json={"predictions": [predictions.pop(0)]})

    def without_explain(route: "sync_api.Route") -> None:
        metadata = {"signature_def": {"signature_def": {"serving_default": {}}}}
        route.fulfill(json={"metadata": metadata})

    watched.page.route("**/metadata", without_explain)
    watched.page.route("**:predict", fulfil)
    page = watched.open(address)
    assert "heat map" not in page.locator("#subtitle").inner_text()
    page.set_input_files("#files", photos / "00.jpg")
    watched.answered(1)
    result = page.locator(".result").first
    assert result.locator("h2").inner_text() == "temple"
    assert result.locator(".bar .share").all_inner_texts() == ["90.0 %", "40.0 %", "20.0 %"]
    page.set_input_files("#files", photos / "07.jpg")
    watched.answered(2)
    cells = page.locator(".result").first.locator("td").all_inner_texts()
    assert cells[1::2] == ["1.5", "-2", "40", "cm"]
    assert cells[0] == NAMES[0]
    assert watched.complaints == []
    page.context.close()
