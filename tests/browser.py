"""Headless Chromium for tests, through its driver's WebDriver protocol: keys, scripts, sizes, accessibility.

Debian: `apt-get install chromium chromium-driver`. A test that asks for a browser where there is none fails, saying so.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ENTER, TAB, SPACE, LEFT, RIGHT, SHIFT = "\ue007", "\ue004", "\ue00d", "\ue012", "\ue014", "\ue008"
CONTROLS = {"button", "textbox", "radio", "checkbox", "progressbar", "link", "slider", "combobox", "region", "group"}
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")

# The contrast of every text that is shown with what lies behind it, WCAG 2.2, of those below 4.5 (large text: 3).
CONTRAST = """
const numbers = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
const light = (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = numbers(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const low = [];
for (const node of document.body.querySelectorAll("*")) {
  const own = [...node.childNodes].some((part) => part.nodeType === 3 && part.data.trim());
  if (!own || !node.checkVisibility() || node.disabled) continue;
  const style = getComputedStyle(node);
  const [a, b] = [luminance(numbers(style.color)), luminance(behind(node))].sort((x, y) => y - x);
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < (large ? 3 : 4.5)) low.push(`${node.tagName} ${node.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
}
return low;
"""
SMALL = """
return [...document.querySelectorAll("button, input")].filter((node) => node.checkVisibility()).map((node) => {
  const box = (node.closest("label") || node).getBoundingClientRect();
  return [node.textContent || node.name, box.width, box.height];
}).filter(([, width, height]) => Math.min(width, height) < 24);
"""
WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth;"


class Browser:
    """One session of the driver."""

    def __init__(self, driver: httpx.Client, session: str) -> None:
        self._driver, self._session = driver, session

    def _call(self, method: str, path: str, **body: object) -> object:
        answer = self._driver.request(
            method, f"/session/{self._session}{path}", json=body if method == "POST" else None
        )
        value = answer.json()["value"]
        assert answer.is_success, value
        return value

    def go(self, address: str) -> None:
        self._call("POST", "/url", url="about:blank")  # else another #token alone would load nothing
        self._call("POST", "/url", url=address)

    def script(self, text: str, *arguments: object) -> object:
        return self._call("POST", "/execute/sync", script=text, args=list(arguments))

    def until(self, text: str, seconds: float = 10) -> object:
        """Wait until a script's condition holds; gives what it returned."""
        waiting = """
const [condition, until, done] = arguments;
const end = Date.now() + until, holds = new Function(condition);
const look = () => { const found = holds(); found || Date.now() > end ? done(found) : setTimeout(look, 5); };
look();
"""
        found = self._call("POST", "/execute/async", script=waiting, args=[text, 1000 * seconds])
        assert found, text
        return found

    def press(self, *keys: str) -> None:
        """Type keys one after the other; of SHIFT and a key, both together."""
        acts = []
        for key in keys:
            acts += [{"type": "keyDown", "value": one} for one in key]
            acts += [{"type": "keyUp", "value": one} for one in reversed(key)]
        self._call("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": acts}])

    def type(self, text: str) -> None:
        self.press(*text)

    def tool(self, command: str, **settings: object) -> dict:
        """A command of Chromium's own protocol for developers."""
        return self._call("POST", "/goog/cdp/execute", cmd=command, params=settings)

    def size(self, width: int, height: int) -> None:
        self.tool(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def dark(self, on: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.tool("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, to: Path) -> None:
        import base64

        to.write_bytes(base64.b64decode(self.tool("Page.captureScreenshot", format="png")["data"]))

    def controls(self) -> list[tuple[str, str]]:
        """Role and name of everything that can be used, as assistive technology is told."""
        self.tool("Accessibility.enable")
        nodes = self.tool("Accessibility.getFullAXTree")["nodes"]
        found = [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
        ]
        return [(role, name) for role, name in found if role in CONTROLS]

    def faults(self) -> list[str]:
        """What a user of a keyboard, a screen reader, weak eyes or a telephone would stumble over."""
        nameless = [f"{role} without a name" for role, name in self.controls() if not name.strip()]
        wide = self.script(WIDE)
        return [
            *nameless,
            *(f"contrast: {one}" for one in self.script(CONTRAST)),
            *(f"small: {one}" for one in self.script(SMALL)),
            *([f"wider than the screen by {wide}"] if wide > 0 else []),
        ]


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Start a browser whose profile lies in this folder."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        pytest.fail(f"no {' and no '.join(missing)} on this machine: apt-get install chromium chromium-driver")
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            port = next(
                found[1] for line in process.stdout if (found := re.search(r"successfully on port (\d+)", line))
            )
            options = {"args": [*ARGUMENTS, f"--user-data-dir={folder}"]}
            asked = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as driver:
                begun = driver.post("/session", content=json.dumps(asked)).json()["value"]
                assert "sessionId" in begun, begun
                try:
                    yield Browser(driver, begun["sessionId"])
                finally:
                    driver.delete(f"/session/{begun['sessionId']}")
        finally:
            process.terminate()
