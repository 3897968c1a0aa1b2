"From Quarto's dialect to MyST's, and from a notebook to a README."

import json
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

import yaml


class SiteError(Exception):
    "One sentence about what is wrong with the site's sources."


@dataclass
class Site:
    root: Path  # the repository
    pages: list[str]  # "index", "methods/wanda", …: every notebook, without its suffix
    url: str  # the published address, which nbdev writes into its links
    repository: str  # where a link to any other file of the repository leads
    anchors: frozenset = frozenset()  # "masks.html#apply", …: headings that nbdev's links may name


def read_cells(path: Path) -> list[dict]:
    "The cells of a notebook, each source as one string."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": joined(cell["source"])} for cell in cells]


def joined(text) -> str:
    return text if isinstance(text, str) else "".join(text)


# ---- links ----


def target(
    site: Site,
    page: str,  # the page that holds the link, "methods/wanda"
    link: str,  # as written there
) -> str:  # as it works on the site
    "Notebooks become pages, figures stay figures, other files are shown in the repository."
    ours = link.startswith(site.url + "/")
    if not ours and ELSEWHERE.match(link):
        return link
    here = "" if ours else posixpath.dirname(page)
    path, _, anchor = (link[len(site.url) :].lstrip("/") if ours else link).partition("#")
    full = posixpath.normpath(posixpath.join("nbs", here, path))
    name, suffix = posixpath.splitext(posixpath.relpath(full, "nbs"))
    if suffix in (".ipynb", ".html") and name in site.pages:
        if ours and f"{name}.html#{anchor}" not in site.anchors:
            anchor = ""
        return relative(f"{name}.html", page) + (f"#{anchor}" if anchor else "")
    if full.startswith("figures/"):
        return relative(full, page)
    return f"{site.repository}/{full}" if (site.root / full).exists() else link  # check.py reports every dead link


def relative(path: str, page: str) -> str:
    return posixpath.relpath(path, posixpath.dirname(page) or ".")


def site_links(site: Site, page: str, text: str) -> str:
    "Rewrite every link and image of a piece of markdown or HTML, leaving code alone."

    def inline(match):
        link, title, attributes = target(site, page, match[1]), match[2], match[3] or ""
        if posixpath.splitext(link)[1] in IMAGES and not ELSEWHERE.match(link):
            return f"](/{posixpath.normpath(posixpath.join(posixpath.dirname(page), link))}{title}){attributes}"
        if link.startswith("#"):
            return match[0]
        return f"]({link}{title}){{.external{attributes and ' '}" + (attributes[1:] or "}")

    def html(match):
        return f'{match[1]}="{target(site, page, match[2])}"'

    plain = outside(
        FENCE, text, lambda prose: OUTER.sub(lambda match: INNER.sub(r"\1", match[0]), prose)
    )  # nbdev also links names inside of links
    return outside(CODE, plain, lambda prose: LINK.sub(inline, ATTRIBUTE.sub(html, prose)))


IMAGES = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")
FENCE = r"^ *```.*?^ *```[ \t]*$"
CODE = FENCE + r"|`[^`\n]+`"
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:|#|//", re.I)
LINK = re.compile(r"\]\(([^)\s]+)((?:\s+\"[^\"]*\")?)\)(\{[^}\n]*\})?")
INNER = re.compile(r"\[(`[^`\n]+`)\]\([^)\s]+\)")
OUTER = re.compile(r"\[(?:[^\[\]`\n]|`[^`\n]+`|" + INNER.pattern + r")*\]\(")
ATTRIBUTE = re.compile(r"\b(src|href)=\"([^\"]+)\"")


def outside(pattern: str, text: str, change) -> str:
    "Apply `change` to the parts of `text` that do not match `pattern`."
    parts = re.split(f"({pattern})", text, flags=re.M | re.S)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


# ---- markdown cells ----

DIV = re.compile(r"^(:{3,})[ \t]*\{([^}\n]*\.[^}\n]*)\}[ \t]*\n(?:\s*^#{1,6} +(.+?) *\n)?", re.M)
FIGURE = re.compile(r"(?:\A|(?<=\n\n))!\[(.+)\]\((\S+?)\)(?:\{([^}]*)\})?[ \t]*(?=\n\n|\n?\Z)")


def markdown(site: Site, page: str, text: str) -> str:
    "A markdown cell in MyST's dialect."
    dialect = lambda prose: FIGURE.sub(figure, DIV.sub(div, prose))
    return outside(FENCE, site_links(site, page, text), dialect)


def div(match) -> str:
    "Quarto's callouts become admonitions, its other divs containers."
    colons, attributes, heading = match.groups()
    classes = re.findall(r"\.([\w-]+)", re.sub(r'"[^"]*"', "", attributes))
    kind = next((c.removeprefix("callout-") for c in classes if c.startswith("callout-")), None)
    title = "".join(re.findall(r'title="([^"]*)"', attributes)) or heading
    if kind is None:
        return f"{colons}{{container}} {' '.join(classes)}\n" + (f"\n{heading}\n" if heading else "")
    if title:
        return f"{colons}{{admonition}} {title}\n:class: {kind}\n\n"
    return f"{colons}{{{kind}}}\n"


def figure(match) -> str:
    "An image that stands alone is a figure, its text the caption."
    caption, path, attributes = match.groups()
    named = dict(re.findall(r'([\w-]+)="?([^"\s]+|[^"]+)"?', attributes or ""))
    label = re.search(r"#([\w-]+)", attributes or "")
    lines = [f":::{{figure}} {path}", f":alt: {named.get('fig-alt', caption)}"]
    if "width" in named:
        lines.append(f":width: {named['width']}")
    if label:
        lines.append(f":name: {label[1]}")
    return "\n".join([*lines, "", caption, ":::"])


# ---- code cells ----

TAGS = {
    ("echo", False): "remove-input",
    ("output", False): "remove-output",
    ("include", False): "remove-cell",
    ("code-fold", True): "hide-input",
}


def options(source: str) -> tuple[dict, str]:
    "The `#|` lines on top of a code cell, as a dict, and the code below them."
    head, code = re.match(r"((?:#\|[^\n]*(?:\n|\Z)|[ \t]*\n)*)(.*)", source, re.S).groups()
    lines = [line.split("|", 1)[1].strip() for line in head.splitlines() if "|" in line]
    pairs = [re.match(r"([\w-]+)(?:\s*:\s*|\s+|$)(.*)", line).groups() for line in lines if line]
    return {key: yaml.safe_load(value) if value else True for key, value in pairs}, code


def code_cell(site: Site, page: str, cell: dict, defaults: dict) -> list[dict]:
    "A code cell with tags in place of options; `output: asis` becomes markdown."
    chosen, code = options(cell["source"])
    chosen = {**defaults, **chosen}
    tags = [tag for option, tag in TAGS.items() if chosen.get(option[0]) is option[1]]
    outputs = [clean(site, page, output) for output in cell.get("outputs", [])]
    if chosen.get("output") == "asis" and outputs:
        asis = [cell_of("markdown", markdown(site, page, text)) for text in map(text_of, outputs) if text]
        return asis if "remove-input" in tags else [cell_of("code", code, tags), *asis]
    return [cell_of("code", code, tags + cell["metadata"].get("tags", []), outputs, presentation(chosen))]


def presentation(chosen: dict) -> dict:
    "Caption, label, alternative text and fold title, where MyST-NB looks for them."
    caption = chosen.get("fig-cap") or chosen.get("tbl-cap")
    shown = (
        {"figure": {"caption": caption, **({"name": chosen["label"]} if "label" in chosen else {})}} if caption else {}
    )
    if "fig-alt" in chosen:
        shown["image"] = {"alt": chosen["fig-alt"]}
    fold = chosen.get("code-summary")
    if fold:
        shown |= {"code_prompt_show": fold, "code_prompt_hide": fold}
    return {"mystnb": shown} if shown else {}


def clean(site: Site, page: str, output: dict) -> dict:
    "An output whose links work on the site."
    if "data" not in output:
        return {**output, "text": joined(output["text"])} if "text" in output else output
    data = {kind: joined(value) if kind.startswith("text/") else value for kind, value in output["data"].items()}
    for kind, change in (("text/markdown", markdown), ("text/html", site_links)):
        if kind in data:
            data[kind] = change(site, page, data[kind])
    return {**output, "data": data}


def text_of(output: dict) -> str:
    "What an output says in text: markdown, else plain."
    data = output.get("data", {"text/plain": output.get("text", "")})
    return joined(data.get("text/markdown", data.get("text/plain", "")))


def cell_of(kind: str, source: str, tags=(), outputs=(), metadata=None) -> dict:
    "One notebook cell."
    cell = {"cell_type": kind, "source": source, "metadata": {**(metadata or {}), "tags": list(tags)}}
    return {**cell, "outputs": list(outputs), "execution_count": None} if kind == "code" else cell


# ---- pages ----


def front_matter(cells: list[dict]) -> dict:
    "What nbdev put on top of a processed notebook: title, description, options."
    raw = [cell["source"].strip().strip("-") for cell in cells[:1] if cell["cell_type"] == "raw"]
    return yaml.safe_load(raw[0]) if raw else {}


def convert(
    site: Site,
    page: str,  # "methods/wanda"
    cells: list[dict],  # of the processed notebook
) -> list[dict]:  # cells that MyST-NB renders
    "A processed notebook as a page."
    meta = front_matter(cells)
    if "title" not in meta:
        raise SiteError(f"nbs/{page}.ipynb has no title: its first cell must be '# Title' and '> one sentence'.")
    lead = f"\n\n:::{{container}} lead\n{meta['description']}\n:::" if "description" in meta else ""
    pages, level, said = [cell_of("markdown", markdown(site, page, f"# {meta['title']}{lead}"))], 1, meta["title"]
    for cell in cells[1:]:
        if cell["cell_type"] == "markdown":
            level, said = depth(cell["source"], level), in_words(cell["source"]) or said
            pages.append(cell_of("markdown", markdown(site, page, cell["source"])))
        elif cell["cell_type"] == "code":
            alt = (
                {"fig-alt": f"Figure: {said}"}
                if any(
                    kind.startswith("image/") for output in cell.get("outputs", []) for kind in output.get("data", {})
                )
                else {}
            )
            shown = code_cell(site, page, cell, {**(meta.get("execute") or {}), **alt})
            pages += [beneath(c, level) if "{container} api" in c["source"] else c for c in shown]
    return pages


def in_words(text: str) -> str:
    "The heading and the first sentence of a markdown cell, without marks: what is said about a figure that follows."
    prose = re.sub(FENCE, "", text, flags=re.M | re.S)
    plain = re.sub(r"[`*$\\_]|!?\[|\]\([^)]*\)", "", prose)
    lines = [
        line.lstrip("# ").strip()
        for line in plain.splitlines()
        if line.strip() and not line.startswith(("|", ":::", "<"))
    ]
    return " – ".join(dict.fromkeys(re.split(r"(?<=[.:?!])\s", line)[0] for line in lines[:2]))[:300]


def depth(text: str, before: int) -> int:
    "The level of the last heading of a markdown cell, or of the one `before` it."
    found = re.findall(r"^(#{1,6}) ", re.sub(FENCE, "", text, flags=re.M | re.S), re.M)
    return len(found[-1]) if found else before


def beneath(cell: dict, level: int) -> dict:
    "An API card one level below the heading it stands under."
    return {**cell, "source": re.sub(r"^#+", "#" * min(level + 1, 6), cell["source"])}


def slug(title: str) -> str:
    "The anchor that Quarto and nbdev give a heading, so that their links work on both sites."
    kept = re.sub(r"[^\w\s.-]", "", title.lower()).strip()
    return re.sub(r"^[^a-z_]+", "", re.sub(r"\s+", "-", kept)) or "section"


# ---- the README ----

HIDING = {"hide", "export", "exporti", "default_exp"}


def readme(
    site: Site,
    cells: list[dict],  # of nbs/index.ipynb, as its authors wrote it
) -> str:  # README.md
    "The landing page as GitHub and the package index show it."
    parts = [part for cell in cells for part in readme_cell(site, cell)]
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def readme_cell(site: Site, cell: dict) -> list[str]:
    "A cell's prose, or its code and what it printed."
    if cell["cell_type"] == "markdown":
        return [readme_prose(site, cell["source"])]
    if cell["cell_type"] != "code":
        return []
    chosen, code = options(cell["source"])
    if HIDING & chosen.keys() or chosen.get("include") is False:
        return []
    shown = [] if chosen.get("echo") is False else [f"```python\n{code.strip()}\n```"]
    return shown if chosen.get("output") is False else shown + [printed(site, output) for output in cell["outputs"]]


def printed(site: Site, output: dict) -> str:
    "An output as markdown: tables and text can be shown, drawings must be files."
    if output.get("name") == "stderr":
        return ""
    data = output.get("data", {})
    if "text/markdown" in data:
        return readme_prose(site, joined(data["text/markdown"]))
    if any(kind.startswith("image/") for kind in data):
        raise SiteError(
            "nbs/index.ipynb shows a drawing as output: a README needs it as a file, ![…](../figures/….png)."
        )
    return f"```text\n{text_of(output).rstrip()}\n```"


def readme_prose(site: Site, text: str) -> str:
    "Links seen from the top of the repository; callouts as GitHub writes them."

    def link(match):
        return f"]({from_root(site, match[1])}{match[2]})"

    def html(match):
        return f'{match[1]}="{from_root(site, match[2])}"'

    links = lambda prose: LINK.sub(link, ATTRIBUTE.sub(html, prose))
    return outside(CODE, outside(FENCE, text, lambda prose: CALLOUT.sub(alert, prose)), links)


CALLOUT = re.compile(r"^(:{3,})[ \t]*\{([^}\n]*\.callout-(\w+)[^}\n]*)\}[ \t]*\n(.*?)^\1[ \t]*$", re.M | re.S)


def alert(match) -> str:
    "A callout as a GitHub alert."
    title = "".join(re.findall(r'title="([^"]*)"', match[2]))
    lines = [f"[!{match[3].upper()}]", *([f"**{title}**", ""] if title else []), *match[4].strip().splitlines()]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def from_root(site: Site, link: str) -> str:
    "A link of nbs/index.ipynb as it works in README.md."
    if ELSEWHERE.match(link):
        return link
    path, _, anchor = link.partition("#")
    full = posixpath.normpath(posixpath.join("nbs", path))
    name, suffix = posixpath.splitext(full)
    if suffix == ".html" and posixpath.relpath(name, "nbs") in site.pages:
        full = f"{name}.ipynb"
    if not (site.root / full).exists():
        raise SiteError(f"nbs/index.ipynb links to {link!r}, which does not exist.")
    return full + (f"#{anchor}" if anchor and not full.endswith(".ipynb") else "")
