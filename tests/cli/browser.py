"""A real browser, without a screen and without a network."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.waiting import wait_until

_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1280,1000",
    "--proxy-server=127.0.0.1:9",  # where nobody answers
)  # fmt: skip


class Browser:
    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def look_at(self, page: Path, theme: Literal["light", "dark"] = "light") -> None:
        """Until its pictures are drawn."""
        self.prefer(theme)
        self.driver.get(page.as_uri())
        wait_until(lambda: self.run("return window.report?.drawn"), "it is drawn", self.complaints)

    def prefer(self, theme: Literal["light", "dark"]) -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> str:
        """What the page has to say on its console, and of its pictures."""
        console = [line["message"] for line in self._log("browser")]
        return "\n".join([*console, *(self.run("return window.report?.errors") or [])])

    def requested(self) -> list[str]:
        """All that was asked for since the last call."""
        messages = (json.loads(line["message"]) for line in self._log("performance"))
        sent = (message["message"] for message in messages)
        return [
            message["params"]["request"]["url"]
            for message in sent
            if message["method"] == "Network.requestWillBeSent"
        ]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return lines

    def column(self, table: str, number: int) -> list[str]:
        """What is shown there, from the top."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)",
            f"#{table} tbody td:nth-child({number})",
        )
        return found


@contextmanager
def a_browser(profile: Path) -> Iterator[Browser]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have chromium: nobody has looked at a report")
        pytest.skip("no chromium with its driver to look at a report with")
    options = ChromeOptions()
    options.binary_location = chromium
    for option in (*_OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
