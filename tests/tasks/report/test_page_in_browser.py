"""Pages in headless Chromium: no error, no request to the outside, nothing broken, at three widths, light and dark.

Screenshots are kept in `.dfkd/tests/screenshots`, or below DFKD_TEST_STATE.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfkd_tasks.report.facts import Comparison, Number, RunRow, StudentReport
from dfkd_tasks.report.page import comparison_page, student_page

websockets = pytest.importorskip("websockets")
ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SECONDS = 60
WIDTHS = (390, 768, 1280)
SCHEMES = ("light", "dark")
EVENTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
# What a reader cannot see in a screenshot of the whole page.
STATE = """({
    broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
    images: document.images.length,
    wide: document.documentElement.scrollWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    light: [...document.querySelectorAll("picture img")].map(image => image.currentSrc === image.src),
})"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[str]:
    """Start a browser and yield the address of its only tab for the debugging protocol."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", "about:blank"], stderr=subprocess.DEVNULL
    )
    try:
        yield _tab(tmp_path / "profile" / "DevToolsActivePort")
    finally:
        process.terminate()
        process.wait(SECONDS)


def _tab(port_file: Path) -> str:
    end = time.monotonic() + SECONDS
    while not port_file.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    port = port_file.read_text().split()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=SECONDS) as answer:
        tabs = json.load(answer)
    return str(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))


class Tab:
    """A tab of the browser."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.number = connection, 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **arguments: Any) -> Any:
        self.number += 1
        await self.connection.send(json.dumps({"id": self.number, "method": method, "params": arguments}))
        while True:
            found = await self._next()
            if found.get("id") == self.number:
                return found["result"]

    async def wait_for(self, event: str) -> None:
        while not any(found["method"] == event for found in self.events):
            await self._next()

    async def _next(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await asyncio.wait_for(self.connection.recv(), SECONDS))
        if "method" in found:
            self.events.append(found)
        return found


async def visit(address: str, page: Path, out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the state of a page in each width and scheme, and all events."""
    states, events = [], []
    async with websockets.connect(address, max_size=None, proxy=None) as connection:
        tab = Tab(connection)
        for domain in ("Page", "Log", "Runtime", "Network"):
            await tab.call(f"{domain}.enable")
        for width in WIDTHS:
            for scheme in SCHEMES:
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                await tab.call("Emulation.setDeviceMetricsOverride", **size)
                media = {"name": "prefers-color-scheme", "value": scheme}
                await tab.call("Emulation.setEmulatedMedia", features=[media])
                events += tab.events
                tab.events.clear()
                await tab.call("Page.navigate", url=page.as_uri())
                await tab.wait_for("Page.loadEventFired")
                answer = await tab.call("Runtime.evaluate", expression=STATE, returnByValue=True)
                states.append({**answer["result"]["value"], "width": width, "scheme": scheme})
                shot = await tab.call("Page.captureScreenshot", captureBeyondViewport=True)
                (out / f"{page.stem}-{width}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
        events += tab.events
    return states, events


def student(make_facts: Callable[..., StudentReport]) -> str:
    return student_page(make_facts())


def several(make_facts: Callable[..., StudentReport]) -> str:
    rows = [
        RunRow(
            name=f"run {number}",
            accuracy=Number(text=f"{number}0%", value=number / 10),
            seconds=Number(text="1 s", value=float(number)),
            size=Number(text="1 kB", value=1000.0 * number),
        )
        for number in (7, 8, 9)
    ]
    return comparison_page(Comparison(title="runs", columns=(), rows=tuple(rows)))


@pytest.mark.slow
@pytest.mark.parametrize("make", [student, several])
def test_page__in_a_browser(
    make: Callable[..., str], make_facts: Callable[..., StudentReport], tmp_path: Path, browser: str
) -> None:
    out = Path(os.environ.get("DFKD_TEST_STATE", ROOT / ".dfkd" / "tests"), "screenshots")
    out.mkdir(parents=True, exist_ok=True)
    page = tmp_path / f"{make.__name__}.html"
    page.write_text(make(make_facts), encoding="utf-8")
    states, events = asyncio.run(visit(browser, page, out))
    assert [event for event in events if event["method"] in EVENTS] == []
    requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url for url in requests if not url.startswith("data:")} == {page.as_uri()}
    assert len(states) == len(WIDTHS) * len(SCHEMES)
    for state in states:
        assert state["images"] >= 2
        assert state["broken"] == 0
        assert state["wide"] <= state["width"]
    light, dark = ([state for state in states if state["scheme"] == scheme] for scheme in SCHEMES)
    assert {state["ground"] for state in light} == {"rgb(255, 255, 255)"}
    assert {state["ground"] for state in dark} == {"rgb(13, 17, 23)"}
    assert all(all(state["light"]) for state in light)
    assert not any(any(state["light"]) for state in dark)
