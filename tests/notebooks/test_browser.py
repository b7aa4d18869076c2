"""A notebook in JupyterLab, in a real browser: run it, move a slider, and the figure is another."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from notebooks.play import TOUR

for needed in ("jupyterlab", "anywidget", "playwright"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'mixcon[notebooks]'")
jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed: pip install 'mixcon[notebooks]'")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt install chromium")]

ROOT = Path(__file__).resolve().parents[2]
DRIVEN = os.environ.get("MIXCON_NOTEBOOKS", " ".join(TOUR)).split()
OUTPUT = ".jp-OutputArea-output:has(.noUi-handle)"  # the figure that has controls
FIGURE, HANDLE, LINE = (f"{OUTPUT} {part}" for part in (".js-plotly-plot", ".noUi-handle", "input[type=text]"))
SECOND = f"{FIGURE} .nsewdrag[data-subplot=x2y2]"
SHOWN = f"""() => {{
    const figure = document.querySelector('{FIGURE}');
    return JSON.stringify([figure.data, figure.layout.title.text]);
}}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over a copy of the notebooks, with settings of its own; its address."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for room in ("configs", "experiments", "docs"):
        (folder / room).symlink_to(ROOT / room)
    shutil.copy(ROOT / "notebooks" / "exhibit.py", folder / "notebooks")
    for name in DRIVEN:
        jupytext.write(jupytext.read(ROOT / "notebooks" / f"{name}.py"), folder / "notebooks" / f"{name}.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    short = {"MIXCON_RUNS": str(folder / "runs"), "MIXCON_STEPS": "8"}  # where a notebook trains and saves
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    (folder / "config" / "labconfig").mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}  # no question about news
    (folder / "config" / "labconfig" / "page_config.json").write_text(json.dumps(quiet))
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(command, cwd=folder, env=os.environ | own | short, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api", timeout=2):
                break
            assert server.poll() is None, (folder / "lab.log").read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()
        log.close()


@pytest.mark.parametrize("name", DRIVEN)
def test_a_slider_that_is_moved_changes_the_figure(name, lab, tmp_path):
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    pictures = Path(os.environ.get("MIXCON_SCREENSHOTS", tmp_path))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 1500, "height": 1400})
        page.set_default_timeout(120_000)
        page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function("() => window.jupyterapp?.commands.hasCommand('notebook:run-all-cells')")
        page.evaluate("() => window.jupyterapp.restored")
        page.wait_for_selector("text=| Idle")  # of the kernel; what is asked before is lost
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        page.wait_for_selector(f"{FIGURE} .main-svg, .jp-OutputArea-output[data-mime-type*=error]", state="attached")
        page.screenshot(path=str(pictures / f"{name}_ran.png"))
        assert not page.locator(".jp-OutputArea-output[data-mime-type*=error]").count()
        page.locator(HANDLE).first.scroll_into_view_if_needed()
        page.wait_for_timeout(2_000)
        before = page.evaluate(SHOWN)
        page.screenshot(path=str(pictures / f"{name}_before.png"))
        handle = page.locator(HANDLE).first
        handle.focus()
        at_its_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        start = time.perf_counter()
        page.keyboard.press("ArrowLeft" if at_its_end else "ArrowRight")
        page.wait_for_function(f"before => ({SHOWN})() !== before", arg=before, timeout=20_000)
        seconds = time.perf_counter() - start
        page.wait_for_timeout(1_000)
        page.screenshot(path=str(pictures / f"{name}_after.png"))
        if page.locator(LINE).count():  # words to type, and pictures to click on
            box = page.locator(SECOND).bounding_box()
            spot = dict(x=box["width"] / 2, y=0.65 * box["height"])
            asked = lambda: page.locator(LINE).first.fill("red"), lambda: page.locator(SECOND).click(position=spot)
            for act in asked:
                before = page.evaluate(SHOWN)
                act()
                page.wait_for_function(f"before => ({SHOWN})() !== before", arg=before, timeout=20_000)
                page.wait_for_timeout(1_000)
            page.screenshot(path=str(pictures / f"{name}_asked.png"))
        browser.close()
    print(f"{name}: the figure in the browser answers in {seconds:.2f} s")
    assert seconds < 5  # drawn in software, beside other tests
    assert (pictures / f"{name}_before.png").read_bytes() != (pictures / f"{name}_after.png").read_bytes()
