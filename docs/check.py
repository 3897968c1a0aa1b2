"""What a finished site must satisfy.

Every link arrives and none is left in markdown, nothing is fetched from elsewhere, and every image says in words what
it shows.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from convert import SiteError

VERBATIM = ("code", "pre", "script", "style")
FETCHING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}


class Page(HTMLParser):
    "The links, the fetched addresses, the anchors, the mute images and the unread markdown links of a page."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.fetched, self.anchors, self.mute, self.unread, self.code = [], [], {""}, [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_data(self, text):
        if not self.code:
            self.unread += re.findall(r"\]\([^)\s]+\.(?:html|ipynb)[^)\s]*\)", text)

    def handle_endtag(self, tag):
        self.code -= tag in VERBATIM

    def handle_starttag(self, tag, attributes):
        self.code += tag in VERBATIM
        values = dict(attributes)
        if values.get("id"):
            self.anchors.add(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in FETCHING and values.get(FETCHING[tag]):
            self.fetched.append(values[FETCHING[tag]])
        if tag == "img" and (
            not values.get("alt") or values["alt"].endswith(values.get("src", "?").rpartition("/")[2])
        ):
            self.mute.append(values.get("src"))
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.fetched.append(values["href"])

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)


def check_site(folder: Path):
    "Raise `SiteError` listing dead and unread links, what is fetched from other hosts, and images without words."
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    problems = [
        f"{path.relative_to(folder.resolve())}: {problem}"
        for path, page in pages.items()
        for problem in [
            *broken(path, page, pages),
            *foreign(page.fetched),
            *(f"no alternative text: {image}" for image in page.mute),
            *(f"a link was left in markdown: {link}" for link in page.unread),
        ]
    ]
    for sheet in folder.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import\s+)[\"']?(?!url\()([^\"')]+)", sheet.read_text(encoding="utf-8"))
        problems += [f"{sheet.relative_to(folder)}: {problem}" for problem in foreign(urls)]
    if problems:
        raise SiteError(
            "\n".join([*problems, f"the site has {len(problems)} such problems; nothing was written to _docs/."])
        )


def foreign(addresses: list[str]) -> list[str]:
    "Addresses on other hosts."
    return [f"fetches {address}" for address in addresses if re.match(r"(https?:)?//", address)]


def broken(path: Path, page: Page, pages: dict) -> list[str]:
    "Links and fetches of a page that lead to no file, or to no such place in it."
    found = []
    for address in [*page.links, *page.fetched]:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        known = pages[goal].anchors if goal in pages else {"", parts.fragment}
        if not goal.exists() or unquote(parts.fragment) not in known:
            found.append(f"leads nowhere: {address}")
    return found
