"""A real browser for the tests of our pages: Debian's chromium, driven by Playwright.

`from browser import chromium, open_page  # noqa: F401` brings the fixtures into a test file; a test that takes one is
skipped, with the reason, where playwright or chromium is missing.
"""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = (1280, 900), (390, 844)


@dataclass
class Seen:
    """What a page did while it was open.

    Attributes:
        problems: errors and warnings of its console, and exceptions of its scripts.
        requests: addresses of everything that it asked for, data: and blob: left out; the page itself comes first.
        refused: those of `requests` that the test's `allowed` did not allow.
    """

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@contextmanager
def running_chromium():
    """A headless chromium for scripts, as Playwright's Browser; RuntimeError where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise RuntimeError("playwright is not installed (pip install playwright)") from error
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise RuntimeError(f"no browser: none of {', '.join(PROGRAMS)} is on the PATH (apt install chromium)")
    with sync_playwright() as playwright:
        # root, as in a container, may not use chromium's sandbox; /dev/shm of a container is too small for it
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browser_page(browser, url: str, size=DESKTOP, allowed=lambda url: False, **context):
    """A page at an address, as (Playwright's Page, Seen); nothing but the page itself and what is allowed is loaded.

    Args:
        browser: of `running_chromium`.
        url: of the page: file:// or http://.
        size: (width, height) in CSS pixels.
        allowed: url -> whether the page may ask for it.
        context: for Playwright's `new_context`: color_scheme="dark", has_touch=True, device_scale_factor=2 ...
    """
    opened = browser.new_context(viewport={"width": size[0], "height": size[1]}, **context)
    try:
        page, seen = opened.new_page(), Seen()
        page.on("console", lambda line: seen.problems.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: seen.problems.append(str(error)))

        def routed(route):
            address = route.request.url
            if address.startswith(("data:", "blob:")):
                return route.continue_()
            seen.requests.append(address)
            if address.split("#")[0] == url.split("#")[0] or allowed(address):
                return route.continue_()
            seen.refused.append(address)
            return route.abort()

        page.route("**/*", routed)
        page.goto(url)
        yield page, seen
    finally:
        opened.close()


@pytest.fixture(scope="module")
def chromium():
    """A browser for the tests of a file; skips where there is none."""
    launched = running_chromium()
    try:
        browser = launched.__enter__()
    except RuntimeError as error:
        pytest.skip(str(error))
    yield browser
    launched.__exit__(None, None, None)


@pytest.fixture
def open_page(chromium):
    """open_page(url, size=DESKTOP, allowed=..., **context) -> (page, seen); closed after the test."""
    opened = []

    def open_one(url, *arguments, **settings):
        opened.append(browser_page(chromium, url, *arguments, **settings))
        return opened[-1].__enter__()

    yield open_one
    for page in opened:
        page.__exit__(None, None, None)


def overflow(page) -> float:
    """CSS pixels by which a page is wider than its window: 0 where nothing scrolls sideways."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def broken_pictures(page) -> list[str]:
    """Pictures of a page that did not decode, by their alternative texts; all of them are loaded first, lazy or not."""
    return page.evaluate(
        """async () => {
            const pictures = [...document.images];
            pictures.forEach(picture => { picture.loading = "eager"; });
            const broken = await Promise.all(pictures.map(picture => picture.decode().then(() => null,
                () => picture.alt || picture.src.slice(0, 80))));
            return broken.filter(name => name !== null);
        }"""
    )
