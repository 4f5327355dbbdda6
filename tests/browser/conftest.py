"""A real Chromium, driven by Playwright. `nox -s browser` installs what it takes, but Chromium itself."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import missing

if TYPE_CHECKING:
    from playwright.async_api import Browser


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop will do: what is tested runs in the browser and in other processes."""
    return "asyncio"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, without a window."""
    try:
        from playwright.async_api import async_playwright
    except ModuleNotFoundError:
        missing("playwright is not installed")
        raise
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        missing("no Chromium on the PATH; install the system's package")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()
