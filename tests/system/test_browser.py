"""The page in a browser: headless Chromium, as Debian packages it."""

import html
import json
import re
import shutil
import subprocess

import pytest

from initopt.comparison.analysis.summary import summarize
from initopt.comparison.report.report import to_document, to_html
from tests.synthetic_comparison import ordinary, ugly

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = [pytest.mark.processes, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

# For this browser there are no other hosts, so nothing that it asks for leaves the machine.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)

EXAMINE = """
<script>
addEventListener("load", () => {
  const images = [...document.images].map(image => ({
    alt: image.alt, width: image.naturalWidth, height: image.naturalHeight, shown: image.getBoundingClientRect().width}));
  const tables = [...document.querySelectorAll("table")].map(table => ({
    width: table.scrollWidth, box: table.parentElement.clientWidth,
    scrolls: getComputedStyle(table.parentElement).overflowX}));
  const texts = [...document.querySelectorAll("p, li, td, th, figcaption, pre, summary, a")].map(
    element => parseFloat(getComputedStyle(element).fontSize));
  parent.document.body.dataset.found = JSON.stringify({images, tables, smallest: Math.min(...texts),
    window: innerWidth, page: document.documentElement.scrollWidth});
});
</script>
"""


def visit(page, folder, width):
    """Open a page and look at it from inside; in a frame, since Chromium makes no window as narrow as a phone.

    Returns:
        What the script found, the messages on the console, and the addresses that were asked for.
    """
    page = page.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    page = html.escape(page.replace("</body>", f"{EXAMINE}</body>"))
    file, log = folder / "page.html", folder / "net.json"
    file.write_text(f'<body><iframe width="{width}" height="900" style="border: 0" srcdoc="{page}">', encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={log}",
            "--window-size=1400,1000",
            "--virtual-time-budget=5000",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', done.stdout).group(1)))
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return found, console, addresses(log)


def addresses(log):
    """All that the page asked for; what Chromium asks for by itself has no origin."""
    text = log.read_text(encoding="utf-8")
    try:
        events = json.loads(text)["events"]
    except json.JSONDecodeError:  # it was ended while it wrote its last line
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    started = [event["params"] for event in events if {"url", "initiator"} <= event.get("params", {}).keys()]
    return {params["url"] for params in started if params["initiator"] != "not an origin"}


@pytest.fixture(scope="module")
def pages():
    made = {"ordinary": ordinary(networks=["plain"]), "ugly": ugly()}
    return {name: to_html(to_document(summarize(found))) for name, found in made.items()}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["ordinary", "ugly"])
def test_page(pages, tmp_path, name, width):
    page = pages[name]
    found, console, asked = visit(page, tmp_path, width)
    assert console == []
    assert asked == set()
    assert len(found["images"]) == page.count("<img ") > 10
    for image in found["images"]:
        assert image["width"] > 300
        assert image["height"] > 200
        assert image["alt"]
        assert 0 < image["shown"] <= width
    assert found["window"] == width
    assert found["page"] <= width, "the page scrolls sideways"
    assert all(table["scrolls"] == "auto" and table["box"] <= width for table in found["tables"])
    assert found["smallest"] >= 12


def test_the_test_sees_errors(pages, tmp_path):
    """A page with what the others must not have."""
    page = pages["ugly"].replace(" img-src data:", " img-src data: https:")
    page = page.replace(
        "</body>", '<script>throw Error("seen")</script><img src="https://example.invalid/a.png" alt="x"></body>'
    )
    found, console, asked = visit(page, tmp_path, 1280)
    assert any("seen" in line for line in console)
    assert asked == {"https://example.invalid/a.png"}
    assert any(image["width"] == 0 for image in found["images"])


def test_the_policy_of_the_page_keeps_it_from_asking(pages, tmp_path):
    page = pages["ugly"].replace("</body>", '<img src="https://example.invalid/a.png" alt="x"></body>')
    _, console, asked = visit(page, tmp_path, 1280)
    assert asked == set()
    assert any("Content Security Policy" in line for line in console)
