"""A notebook becomes a page of the site; `nbs/index.ipynb` also becomes the README.

Sources are written in a small dialect: plain Markdown, and the options of `OPTIONS` on top of code cells. What stands
beside them is refused, not translated. No cell is run.
"""

import ast
import json
import posixpath
import re
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import yaml
from card import api_card

OPTIONS = {
    "default_exp": "the module that a notebook exports; the cell is not shown",
    "export": "source of the package; shown folded, below the documentation of what it defines",
    "exporti": "the same for names that only other rooms need: they are not public",
    "hide": "not shown",
    "slow": "not run by `make test`",
    "echo": "false: only the output is shown",
    "code-fold": "true: the code is folded",
    "fig-cap": "caption of the figure",
    "fig-alt": "what the figure shows, for those who do not see it",
}
EXPORTED = {"export", "exporti"}


class SiteError(Exception):
    "One sentence about what is wrong with the site's sources."


@dataclass
class Site:
    root: Path  # the repository
    pages: list[str]  # "index", "methods/wanda", …: every notebook, without its suffix
    repository: str  # where a link to any other file of the repository leads
    names: dict = field(default_factory=dict)  # a public name → the address of its documentation


# ---- notebooks ----


def read_cells(path: Path) -> list[dict]:
    "The cells of a notebook, each source as one string."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": joined(cell["source"])} for cell in cells]


def joined(text) -> str:
    return text if isinstance(text, str) else "".join(text)


def cell_of(kind: str, source: str, tags=(), outputs=(), metadata=None) -> dict:
    "One notebook cell."
    cell = {"cell_type": kind, "source": source, "metadata": {**(metadata or {}), "tags": list(tags)}}
    return {**cell, "outputs": list(outputs), "execution_count": None} if kind == "code" else cell


def options(source: str) -> tuple[dict, str]:
    "The `#|` lines on top of a code cell, as a dict, and the code below them."
    head, code = re.match(r"((?:#\|[^\n]*(?:\n|\Z)|[ \t]*\n)*)(.*)", source, re.S).groups()
    lines = [line.split("|", 1)[1].strip() for line in head.splitlines() if "|" in line]
    pairs = [re.match(r"([\w-]+)(?:\s*:\s*|\s+|$)(.*)", line).groups() for line in lines if line]
    chosen = {key: yaml.safe_load(value) if value else True for key, value in pairs}
    if unknown := chosen.keys() - OPTIONS.keys():
        raise SiteError(f"unknown cell options {sorted(unknown)}: known are {', '.join(OPTIONS)}.")
    return chosen, code


TITLE = re.compile(r"# (.+?)\s*(?:\n+> (.+?)\s*)?")


def title(page: str, cells: list[dict]) -> tuple:
    "Title and sentence of a page, from its first cell, which holds nothing else."
    first = cells[0] if cells else {"source": "", "cell_type": ""}
    found = TITLE.fullmatch(first["source"]) if first["cell_type"] == "markdown" else None
    if not found:
        raise SiteError(
            f"nbs/{page}.ipynb has no title: its first cell is '# Title' and '> one sentence', the rest belongs into "
            "the next one."
        )
    return found[1], found[2] or ""


def module_of(cells: list[dict]) -> str | None:
    "The module that a notebook exports."
    found = (re.search(r"^#\| *default_exp +(\S+)", cell["source"], re.M) for cell in cells)
    return next((match[1] for match in found if match), None)


def definitions(code: str) -> list[str]:
    "The public functions and classes that a cell defines."
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(code).body if isinstance(node, kinds) and node.name[0] != "_"]


def only_imports(code: str) -> bool:
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body)


def documented(module: str, name: str):
    "The object that the exported module has under a name."
    full = f"pruneresearch.{module}".removesuffix(".__init__")
    try:
        return getattr(import_module(full), name)
    except (ImportError, AttributeError) as error:
        raise SiteError(f"{full} has no {name} ({error}): run nbdev_export before building the site.") from error


def public_names(notebooks: dict[str, list]) -> dict[str, str]:
    "Public name → address of its card, for names that one page alone defines."
    homes: dict[str, list] = {}
    for page, cells in notebooks.items():
        if module_of(cells) is None:
            continue
        for cell in cells:
            chosen, code = options(cell["source"]) if cell["cell_type"] == "code" else ({}, "")
            for name in definitions(code) if EXPORTED & chosen.keys() else []:
                homes.setdefault(name, []).append(f"{page}.html#{slug(name)}")
    return {name: places[0] for name, places in homes.items() if len(places) == 1}


# ---- links ----

FENCE = r"^ *```.*?^ *```[ \t]*$"
CODE = FENCE + r"|`[^`\n]+`"
LINKED = r"\[(?:[^\[\]`\n]|`[^`\n]+`)*\]\([^)\n]*\)"
HEADING = r"^#{1,6} [^\n]*$"
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:|#|//", re.I)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ATTRIBUTE = re.compile(r"\b(src|href)=\"([^\"]+)\"")
NAME = re.compile(r"`(([A-Za-z]\w+)[\w.]*)(?:\(\))?`")
IMAGES = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")


def outside(pattern: str, text: str, change) -> str:
    "Apply `change` to the parts of `text` that do not match `pattern`."
    parts = re.split(f"({pattern})", text, flags=re.M | re.S)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def target(
    site: Site,
    page: str,  # the page that holds the link, "methods/wanda"
    link: str,  # as written there
) -> str:  # as it works on the site
    "Notebooks become pages, figures stay figures, other files are shown in the repository."
    if ELSEWHERE.match(link):
        return link
    path, _, anchor = link.partition("#")
    full = posixpath.normpath(posixpath.join("nbs", posixpath.dirname(page), path))
    name, suffix = posixpath.splitext(posixpath.relpath(full, "nbs"))
    if suffix in (".ipynb", ".html") and name in site.pages:
        return relative(f"{name}.html", page) + (f"#{anchor}" if anchor else "")
    if full.startswith("figures/"):
        return relative(full, page)
    return f"{site.repository}/{full}" if (site.root / full).exists() else link  # check.py reports every dead link


def relative(path: str, page: str) -> str:
    return posixpath.relpath(path, posixpath.dirname(page) or ".")


def markdown(site: Site, page: str, text: str) -> str:
    "A piece of markdown whose links work on the site; names of the library lead to their documentation."

    def link(match):
        goal = target(site, page, match[1])
        if goal.startswith("#"):
            return match[0]
        if posixpath.splitext(goal)[1] in IMAGES and not ELSEWHERE.match(goal):
            return f"](/{posixpath.normpath(posixpath.join(posixpath.dirname(page), goal))})"
        return f"]({goal}){{.external}}"

    def name(match):
        home = site.names.get(match[2])
        return f"[{match[0]}]({relative(home, page)}){{.external}}" if home else match[0]

    def names(prose):
        return outside(f"{LINKED}|{HEADING}", prose, lambda rest: NAME.sub(name, rest))

    moved = outside(CODE, text, lambda prose: LINK.sub(link, prose))
    return outside(FENCE, moved, names)


def html(site: Site, page: str, text: str) -> str:
    "A piece of HTML whose links work on the site."
    return ATTRIBUTE.sub(lambda match: f'{match[1]}="{target(site, page, match[2])}"', text)


# ---- pages ----


def convert(
    site: Site,
    page: str,  # "methods/wanda"
    cells: list[dict],  # of the notebook
) -> list[dict]:  # cells that MyST-NB renders
    "A notebook as a page."
    heading, sentence = title(page, cells)
    lead = f"\n\n:::{{container}} lead\n{sentence}\n:::" if sentence else ""
    shown = [cell_of("markdown", markdown(site, page, f"# {heading}{lead}"))]
    module, level, said = module_of(cells), 1, heading
    for cell in cells[1:]:
        if cell["cell_type"] == "markdown":
            require_plain(page, cell["source"])
            level, said = depth(cell["source"], level), in_words(cell["source"]) or said
            shown.append(cell_of("markdown", markdown(site, page, cell["source"])))
        elif cell["cell_type"] == "code":
            shown += code_cells(site, page, cell, said, module, level)
    return shown


def require_plain(page: str, text: str):
    "Divs, callouts and figure attributes are what renderers disagree about."
    found = re.search(r"^:::.*|!\[[^\n]*\)\{.*", re.sub(FENCE, "", text, flags=re.M | re.S), re.M)
    if found:
        raise SiteError(f"nbs/{page}.ipynb holds {found[0]!r}: write plain Markdown, which every renderer shows alike.")


def code_cells(site: Site, page: str, cell: dict, said: str, module: str | None, level: int) -> list[dict]:
    "A code cell: nothing where it is hidden, cards and folded source where it is exported, else code and outputs."
    chosen, code = options(cell["source"])
    if {"hide", "default_exp"} & chosen.keys():
        return []
    if EXPORTED & chosen.keys():
        return [] if only_imports(code) else exported_cells(site, page, code, module, level)
    tags = ["remove-input"] * (chosen.get("echo") is False) + ["hide-input"] * bool(chosen.get("code-fold"))
    outputs = [clean(site, page, output) for output in cell.get("outputs", [])]
    metadata = figure(chosen, said, outputs)
    plain = re.sub(r"^%.*\n?", "", code, flags=re.M)  # magics
    return [cell_of("code", plain, tags + cell["metadata"].get("tags", []), outputs, metadata)]


def exported_cells(site: Site, page: str, code: str, module: str | None, level: int) -> list[dict]:
    "The cards of what a cell defines, one level below the heading above them, then its source, folded."
    names = definitions(code)
    cards = [api_card(documented(module, name), min(level + 1, 6)) for name in names]
    shown = [cell_of("markdown", markdown(site, page, card)) for card in cards]
    fold = {"mystnb": {"code_prompt_show": "Source", "code_prompt_hide": "Source"}} if names else {}
    return [*shown, cell_of("code", code, ["hide-input"] * bool(names), metadata=fold)]


def figure(chosen: dict, said: str, outputs: list) -> dict:
    "Caption and alternative text of a cell's figure, where MyST-NB looks for them."
    if not any(kind.startswith("image/") for output in outputs for kind in output.get("data", {})):
        return {}
    shown = {"image": {"alt": chosen.get("fig-alt", f"Figure: {said}")}}
    if "fig-cap" in chosen:
        shown["figure"] = {"caption": chosen["fig-cap"]}
    return {"mystnb": shown}


def clean(site: Site, page: str, output: dict) -> dict:
    "An output whose links work on the site."
    if "data" not in output:
        return {**output, "text": joined(output["text"])} if "text" in output else output
    data = {kind: joined(value) if kind.startswith("text/") else value for kind, value in output["data"].items()}
    for kind, change in (("text/markdown", markdown), ("text/html", html)):
        if kind in data:
            data[kind] = change(site, page, data[kind])
    return {**output, "data": data}


def in_words(text: str) -> str:
    "The heading and the first sentence of a markdown cell, without marks: what is said about a figure that follows."
    prose = re.sub(FENCE, "", text, flags=re.M | re.S)
    plain = re.sub(r"[`*$\\_]|!?\[|\]\([^)]*\)", "", prose)
    kept = [line for line in plain.splitlines() if line.strip() and not line.startswith(("|", "<"))]
    sentences = [re.split(r"(?<=[.:?!])\s", line.lstrip("# ").strip())[0] for line in kept[:2]]
    return " – ".join(dict.fromkeys(sentences))[:300]


def depth(text: str, before: int) -> int:
    "The level of the last heading of a markdown cell, or of the one `before` it."
    found = re.findall(r"^(#{1,6}) ", re.sub(FENCE, "", text, flags=re.M | re.S), re.M)
    return len(found[-1]) if found else before


def slug(title: str) -> str:
    "The anchor that Quarto and nbdev give a heading, so that their links work on both sites."
    kept = re.sub(r"[^\w\s.-]", "", title.lower()).strip()
    return re.sub(r"^[^a-z_]+", "", re.sub(r"\s+", "-", kept)) or "section"


# ---- the README ----


def readme(
    site: Site,
    cells: list[dict],  # of nbs/index.ipynb
) -> str:  # README.md
    "The landing page as GitHub and the package index show it."
    parts = [part for cell in cells for part in readme_cell(site, cell)]
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def readme_cell(site: Site, cell: dict) -> list[str]:
    "A cell's prose, or its code and what it printed."
    if cell["cell_type"] == "markdown":
        return [readme_prose(site, cell["source"])]
    chosen, code = options(cell["source"])
    if {"hide", "default_exp", *EXPORTED} & chosen.keys():
        return []
    shown = [] if chosen.get("echo") is False else [f"```python\n{code.strip()}\n```"]
    return shown + [printed(site, output) for output in cell["outputs"]]


def printed(site: Site, output: dict) -> str:
    "An output as markdown: tables and text can be shown, drawings must be files."
    if output.get("name") == "stderr":
        return ""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "text/markdown" in data:
        return readme_prose(site, joined(data["text/markdown"]))
    if any(kind.startswith("image/") for kind in data):
        raise SiteError(
            "nbs/index.ipynb shows a drawing as output: a README needs it as a file, ![…](../figures/….png)."
        )
    return f"```text\n{joined(data.get('text/plain', '')).rstrip()}\n```"


def readme_prose(site: Site, text: str) -> str:
    "Links seen from the top of the repository."
    return outside(CODE, text, lambda prose: LINK.sub(lambda match: f"]({from_root(site, match[1])})", prose))


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
