"""What tests ask of a page: its tags, its charts, and what a browser makes of it."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Elements(html.parser.HTMLParser):
    """Every tag of a page with its attributes, and whether each that needs it is closed."""

    VOID = ("meta", "link", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def data_of(page):
    return json.loads(re.search(r'id="charts">(.*?)</script>', page).group(1))


def drawn_by_browser(page: pathlib.Path, folder: pathlib.Path) -> str:
    """Returns a page's HTML without scripts after a browser has run them without an error; `folder` has its profile."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{page}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    return re.sub("<script.*?</script>", "", done.stdout, flags=re.DOTALL)
