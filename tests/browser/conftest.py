"""Chromium on the live server's page. Where it is missing the tests are skipped, with the reason."""

import os
import shutil
from pathlib import Path

import pytest
from td_pack.tests.browser.page import Page
from td_pack.tests.support import checkpoints

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Locale": "en",
    "Comfy.Pointer.DoubleClickTime": 1000,  # ms; on a busy machine two clicks come further apart than the default 300
}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Where the screenshots go: TURBODIFFUSION_PICTURES, else pytest's own folder."""
    folder = Path(os.environ.get("TURBODIFFUSION_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def page(server, pictures):
    """ComfyUI's page, opened once: loading it is what takes long.

    Playwright keeps an event loop running in this thread, so `server.client` does not work until the module is over."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    checkpoints.write_toy_models(server.models_dir)
    server.client.post("/settings", SETTINGS)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield Page(browser.new_page(viewport={"width": 1600, "height": 950}), server, pictures)
        finally:
            browser.close()


@pytest.fixture(autouse=True)
def nothing_of_ours_failed(page):
    """After each test the page must not have complained about the pack."""
    yield
    assert page.complaints() == []
