"""`/docs` in a real browser: examples are sent as they stand, and nothing is asked of any other host.

Needs Chromium and its driver, and `pip install -e '.[browser]'`; is skipped without them.
"""

import asyncio
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.api.conftest import Workers
from tests.integration.conftest import SETOSA, split

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support import expected_conditions  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,2000"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver")]


@pytest.fixture
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield opened
    opened.quit()


class Page:
    def __init__(self, browser: Any, url: str) -> None:
        self._browser = browser
        browser.get(f"{url}/docs")

    def _wait(self, condition: Any) -> Any:
        return WebDriverWait(self._browser, 30).until(condition)

    def try_out(self, operation: str) -> tuple[str, str]:
        """Sends an operation's own example; the status and the body of the answer."""
        block = self._wait(expected_conditions.presence_of_element_located((By.CSS_SELECTOR, operation)))
        block.find_element(By.CSS_SELECTOR, ".opblock-summary-control").click()
        self._wait(lambda _: block.find_elements(By.CSS_SELECTOR, "button.execute"))[0].click()
        live = self._wait(lambda _: block.find_elements(By.CSS_SELECTOR, ".live-responses-table .response"))[0]
        return live.find_element(By.CSS_SELECTOR, ".response-col_status").text.split()[0], live.text


async def test_examples_are_sent_as_they_stand(
    browser: Any, api_url: str, http: httpx.AsyncClient, workers: Workers, iris_model: str
) -> None:
    first = await workers.while_(
        http.post("/v1/jobs", json={"model": "models:/iris/1", **split(SETOSA)}, headers={"Prefer": "wait=30"})
    )
    assert first.status_code == 200

    def by_hand() -> dict[str, tuple[str, str]]:
        page = Page(browser, api_url)
        ids = ("operations-jobs-submit_v1_jobs_post", "operations-models-list_models_v1_models_get")
        return {name: page.try_out(f"#{name}") for name in ids}

    submitted, models = (await workers.while_(asyncio.to_thread(by_hand))).values()
    assert submitted[0] == "202", submitted
    assert '"status": "queued"' in submitted[1]
    assert models[0] == "200", models
    assert '"name": "iris"' in models[1]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    asked = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert asked
    assert all(api_url in message for message in asked if '"url":"http' in message)
