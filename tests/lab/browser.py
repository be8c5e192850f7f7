"""Drive a real browser (Debian's chromium, headless) over its debugging pipe, for tests of the status page.

    with Browser() as browser:
        page = browser.open("http://127.0.0.1:9701/")
        page.wait("document.querySelector('tbody tr')")
        page.screenshot(path)

It waits by gevent, so that the server may run in the same process. `requests` lists what the page requested, and
`complaints` the errors in it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import gevent
from gevent.event import AsyncResult
from gevent.os import make_nonblocking, nb_read, nb_write

from tests.lab import PATIENCE

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def installed() -> str | None:
    return shutil.which("chromium")


class Browser:
    """Run one process of chromium with a profile of its own."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="l2tpns-browser-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: dict[int, AsyncResult] = {}
        self._pages: dict[str, Page] = {}
        self._number = 0
        self._reader: Any = None

    def __enter__(self) -> Self:
        program = installed()
        assert program is not None, "chromium is not installed"
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Chromium uses descriptors 3 and 4: move those of this process that may have these numbers.
        low = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]

        def place() -> None:
            os.dup2(low[0], 3)
            os.dup2(low[1], 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=place,
            start_new_session=True,
        )
        for end in (theirs_in, theirs_out, *low):
            os.close(end)
        self._in, self._out = ours_in, ours_out
        make_nonblocking(self._in)
        make_nonblocking(self._out)
        self._reader = gevent.spawn(self._read)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        gevent.kill(self._reader)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def open(self, url: str, width: int = 1280, height: int = 900) -> Page:
        """Open a new page and wait until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        self._pages[page.session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.size(width, height)
        page.call("Page.navigate", url=url)
        page.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")
        return page

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        question: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            question["sessionId"] = session
        result = self._answers[self._number] = AsyncResult()
        octets = json.dumps(question).encode() + b"\0"
        while octets:
            octets = octets[nb_write(self._out, octets) :]
        answer: dict[str, Any] = result.get(timeout=PATIENCE)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        found: dict[str, Any] = answer["result"]
        return found

    def _read(self) -> None:
        rest = b""
        while octets := nb_read(self._in, 65536):
            *messages, rest = (rest + octets).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).set(message)
        elif message.get("sessionId") in self._pages:
            self._pages[message["sessionId"]].heard(message["method"], message["params"])


class Page:
    """Control one tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self.session = session
        self.requests: list[str] = []  # addresses
        self.complaints: list[str] = []  # errors and warnings of the console, exceptions

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self.session, **parameters)

    def heard(self, event: str, facts: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif event == "Log.entryAdded":
            self.complaints.append(f"{facts['entry']['level']}: {facts['entry']['text']}")
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(facts["exceptionDetails"]))

    def evaluate(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, script: str, timeout: float = PATIENCE) -> None:
        """Wait until the expression is true."""
        end = monotonic() + timeout
        while not self.evaluate(f"Boolean({script})"):
            if monotonic() > end:
                raise TimeoutError(f"{timeout:g} s without {script}")
            gevent.sleep(0.05)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def dark(self, dark: bool = True) -> None:
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def click(self, selector: str) -> None:
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def hover(self, selector: str, across: float = 0.5) -> None:
        """Move the pointer over an element, at this share of its width."""
        x, y = self._middle(selector, across)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, text: str) -> None:
        """Type text into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "char", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "char" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, path: Path) -> None:
        """Save an image of the whole page, however long."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _middle(self, selector: str, across: float = 0.5) -> tuple[float, float]:
        script = f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: "center"}}); const b = e.getBoundingClientRect();
            return [b.x + b.width * {across}, b.y + b.height / 2]; }})()"""
        x, y = self.evaluate(script)
        return x, y
