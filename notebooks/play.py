"""Run notebooks without a browser, move every control of every exhibit, and say how long each answer took.

python -m notebooks.play                       # all of them: a table of response times
python -m notebooks.play sphere --json         # one of them, a line of JSON
python -m notebooks.play --pictures docs/img/notebooks   # and pictures, drawn by chromium through playwright
"""

import argparse
import contextlib
import io
import json
import os
import runpy
import shutil
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TOUR = ("temperature", "sphere", "contrastive_gap", "geodesic_mixup", "mixing_plans", "engine", "your_own")
MOVES = 7  # positions tried of each control
LARGEST = 150_000  # bytes of a picture


def run(name: str) -> tuple[list[Any], float]:
    """Execute a notebook's source top to bottom, where a kernel would: its exhibits, and seconds."""
    if not (path := HERE / f"{name}.py").is_file():
        raise SystemExit(f"there is no notebook {name!r}; there are {', '.join(TOUR)}")
    os.chdir(HERE)
    sys.path.insert(0, str(HERE))
    sys.modules.pop("exhibit", None)  # with what an earlier one has shown
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        found = runpy.run_path(str(path), run_name="__main__")
    return found["exhibit"].Exhibit.shown, time.perf_counter() - start


def positions(control: Any) -> list[Any]:
    """Values to try, from all over the control's range; where it started comes last."""
    values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    start = control.value
    chosen = (
        [values[round(i * (len(values) - 1) / (MOVES - 1))] for i in range(MOVES)] if len(values) > MOVES else values
    )
    return [v for v in chosen if v != start] + [start]


def measure(exhibit: Any) -> dict[str, dict[str, Any]]:
    """Seconds of every answer of every control, and whether the figure's data changed."""
    result = {}
    for name, control in exhibit.controls.items():
        before, seconds, changed = state(exhibit.figure), [], False
        for value in positions(control):
            start = time.perf_counter()
            control.value = value
            seconds.append(time.perf_counter() - start)
            changed |= state(exhibit.figure) != before
        result[name] = {"longest": max(seconds), "median": sorted(seconds)[len(seconds) // 2], "changed": changed}
    return result


def state(figure: Any) -> str:
    """Everything that the figure shows, to compare."""
    return figure.to_json()


def take_picture(figure: Any, path: Path) -> None:
    """The figure as chromium draws it, as a PNG of at most `LARGEST` bytes."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    page_text = figure.to_html(include_plotlyjs=True, full_html=True, config={"displayModeBar": False})
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1120, "height": 700}, device_scale_factor=1.5)
        page.set_content(page_text)
        page.wait_for_selector(".plotly-graph-div .main-svg")
        page.wait_for_timeout(1500)  # WebGL draws after the frame around it
        page.locator(".plotly-graph-div").screenshot(path=str(path))
        browser.close()
    image = Image.open(path).convert("RGB")
    for colors in (256, 128, 64, 32):
        image.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            return
    image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS).quantize(64).save(
        path, optimize=True
    )


ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars"]


def chromium() -> str | None:
    """The system's browser; None leaves the choice to playwright."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TOUR)}; all if none")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each")
    options = parser.parse_args()
    if options.pictures:
        (pictures := options.pictures.resolve()).mkdir(parents=True, exist_ok=True)
    # In one process: most of the time goes into imports and compilation. The engine wants several devices, from the start.
    for name in sorted(options.names or TOUR, key=lambda name: name != "engine"):
        shown, seconds = run(name)
        if options.pictures:
            moved = next(each for each in shown if each.controls)  # the one to play with
            take_picture(moved.figure, pictures / f"{name}.png")
        controls = {control: times for each in shown for control, times in measure(each).items()}
        if options.json:
            print(json.dumps({"name": name, "seconds": seconds, "controls": controls}), flush=True)
            continue
        print(f"{name}: runs in {seconds:.0f} s")
        for control, times in controls.items():
            print(f"  {control:<14} median {times['median']:.3f} s, longest {times['longest']:.3f} s", flush=True)


if __name__ == "__main__":
    main()
