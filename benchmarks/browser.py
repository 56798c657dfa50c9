"""A real browser, for tests and for pictures in docs: Chromium without a window, driven by the DevTools protocol.

with Browser(tmp_path, width=1280) as browser:
    browser.open("file:///page.html")
    browser.run("document.title")
    browser.screenshot(path)
    browser.complaints      # what the console and the network had to say
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from thinner.errors import UserError

PATIENCE = 600.0  # seconds after which what hangs is ended: no claim, for a machine may be busy


class NoBrowserError(UserError):
    """There is no Chromium on this machine."""


class BrowserError(RuntimeError):
    """The page, or the browser, did not do what was waited for."""


def find_chromium() -> str:
    """Its path. Raises NoBrowserError."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        raise NoBrowserError("no Chromium on this machine. Debian: apt install chromium")
    return found


class Browser:
    def __init__(self, folder: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.profile = folder / "chromium"
        self.width, self.height, self.dark = width, height, dark
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Browser:
        note = self.profile / "DevToolsActivePort"
        note.unlink(missing_ok=True)  # of a browser that used this folder before
        self.process = subprocess.Popen(
            [
                find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--disable-component-update", "--no-first-run", "--hide-scrollbars", "--remote-debugging-port=0",
                "--remote-debugging-address=127.0.0.1", "--remote-allow-origins=*", f"--user-data-dir={self.profile}",
                f"--window-size={self.width},{self.height}", "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        give_up = time.monotonic() + PATIENCE
        while not (note.exists() and note.read_text().count("\n")):
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise BrowserError("Chromium does not start")
            time.sleep(0.1)
        port = note.read_text().split()[0]
        page = None
        while page is None:
            if time.monotonic() > give_up:
                raise BrowserError("Chromium shows no page")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
                page = next((target for target in json.load(answer) if target["type"] == "page"), None)
        self.socket = connect(page["webSocketDebuggerUrl"], max_size=None, open_timeout=PATIENCE, proxy=None)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=self.width, height=self.height, deviceScaleFactor=1, mobile=self.width < 600,
        )  # fmt: skip
        if self.dark:
            self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=PATIENCE)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=PATIENCE))
            if message.get("id") == number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']}")
                return dict(message.get("result", {}))
            self._listen(message)

    def _listen(self, message: dict[str, Any]) -> None:
        what, said = message.get("method"), message.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"].get("exception", {}).get("description", said)))
        elif what == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(argument.get("value", "")) for argument in said["args"]))
        elif what == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif what == "Network.requestWillBeSent" and said["request"]["url"].startswith(("http:", "https:")):
            self.requests.append(said["request"]["url"])

    def open(self, url: str) -> None:
        self.requests: list[str] = []
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, script: str, seconds: float = PATIENCE) -> Any:
        """Wait until the expression is truthy; returns it."""
        give_up = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > give_up:
                raise BrowserError(f"not within {seconds} s: {script}")
            time.sleep(0.1)
        return value

    def press(self, key: str) -> None:
        """A key of the keyboard, by its name in DOM events: Tab, Enter, ..."""
        text = {"Enter": "\r"}.get(key, "")
        code = {"Enter": 13, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(shot["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        height = self.run("document.documentElement.scrollHeight")
        return {"clip": {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}}
