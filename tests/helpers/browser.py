"""A headless Chromium without a network, driven through its debugging pipe: no package is needed.

What is sent and answered is Chrome's DevTools protocol: JSON messages that end in a zero byte.
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"),
    *("--use-angle=swiftshader", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run", "--remote-debugging-pipe"),
)
PATIENCE = 120.0  # seconds for one answer; the machine may be busy


class Browser:
    """One page; ``errors`` are those of the console and of scripts, ``urls`` what was asked for."""

    def __init__(self, folder):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        words = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *words],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._numbers, self._rest, self._session = itertools.count(1), b"", None
        self.errors, self.urls, self._events = [], [], []
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def send(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self._note(answer)

    def _message(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            self._rest += os.read(self._read, 1 << 20)
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        name, told = event.get("method"), event.get("params", {})
        self._events.append(name)
        if name == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"])
        elif name == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"])
        elif name == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(told["args"])
        elif name == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if not url.startswith(("data:", "blob:")):  # what the page itself holds
                self.urls.append(url)

    def open(self, path, width=1100, height=800, scripts=True, scheme="light"):
        self.errors, self.urls, self._events = [], [], []
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + PATIENCE
        while "Page.loadEventFired" not in self._events:
            assert time.monotonic() < end, "the page is not loaded"
            self._note(self._message())

    def ask(self, expression):
        """The value of a JavaScript expression, a promise's too."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression):
        end = time.monotonic() + PATIENCE
        while not self.ask(f"!!({expression})"):  # an element has no value that can be sent
            assert time.monotonic() < end, expression
            time.sleep(0.1)

    def mouse(self, kind, x, y, **more):
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, start, stop, steps=6):
        held = {"button": "left", "buttons": 1}
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, clickCount=1, **held)
        for i in range(1, steps + 1):
            x, y = (a + (b - a) * i / steps for a, b in zip(start, stop))
            self.mouse("mouseMoved", x, y, **held)
        self.mouse("mouseReleased", *stop, clickCount=1, button="left")

    def picture(self, path):
        """What is in the window, as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def printed(self):
        """The page as PDF, as it is printed."""
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"])
