"""The examples of docs/clients.md, as they stand."""

import asyncio
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from pyfunq.http_transport import trusted
from tests.integration.conftest import Work
from tests.programs import ROOT

_BLOCK = re.compile(r"```python run ?(\w*)\n(.*?)```", re.DOTALL)
EXAMPLES = _BLOCK.findall((ROOT / "docs/clients.md").read_text())
PRINTED = {
    0: "[0]\nsucceeded 2 {'order': 'A-1'}\n",
    1: "{'one': 0, 'two': 2}\n",
    2: "succeeded\nsucceeded\nsucceeded\n[0]\n[2]\n[0]\n",
    3: "[0]\n[2]\n",
    4: "1000\n",
}


@pytest.mark.usefixtures("iris_model")
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_it_prints_what_its_comments_say(
    number: int, api_url: str, work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs, source = EXAMPLES[number]
    async with httpx.AsyncClient(base_url=api_url, verify=trusted()) as http:
        if needs and f"/v1/{needs}" not in (await http.get("/openapi.json")).json()["paths"]:
            pytest.skip(f"this API has no {needs}")
    monkeypatch.setenv("PYFUNQ_API_URL", api_url)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()

    def example() -> None:
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "docs/clients.md", "exec"), {"__name__": "example"})  # noqa: S102

    ended: asyncio.Task[Any] = asyncio.create_task(asyncio.to_thread(example))
    while not ended.done():
        await work.all()
        await asyncio.wait([ended], timeout=0.02)
    await ended
    assert printed.getvalue() == PRINTED[number]
