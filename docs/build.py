"""Documentation: `python docs/build.py site` writes _docs/, `python docs/build.py readme [--check]` README.md.

The site is made of the notebooks in nbs/, in the order of `_quarto.yml`, by MyST-NB and Sphinx. Nothing is run and
nothing is fetched. With Quarto installed, `nbdev_docs` renders the same sources.
"""

import argparse
import html
import json
import re
import shutil
import sys
from pathlib import Path

import yaml
from card import repository_url
from check import check_site
from convert import Site, SiteError, cell_of, convert, options, public_names, read_cells, readme, title

ROOT = Path(__file__).resolve().parent.parent


# ---- navigation ----


def sections(
    root: Path,  # the repository
) -> list[tuple]:  # (caption, [(page, text or None), …]) per section; "Reference · data" for a section inside another
    "The navigation, as `_quarto.yml` has it."
    contents = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return [found for section in contents for found in section_of(section)]


def section_of(section: dict, above: str = "") -> list[tuple]:
    "A section and those inside it."
    caption = above + section["section"]
    inner = [item for item in section["contents"] if "section" in item and isinstance(item, dict)]
    own = [entry(item) for item in section["contents"] if item not in inner]
    return [(caption, own)] * bool(own) + [found for item in inner for found in section_of(item, f"{caption} · ")]


def entry(item) -> tuple:
    "A page and the text that names it in the navigation."
    href, text = (item["href"], item.get("text")) if isinstance(item, dict) else (item, None)
    return href.removesuffix(".ipynb"), text


def notebooks(root: Path) -> list[str]:
    "Every notebook in nbs/, as a page name."
    found = [path.relative_to(root / "nbs") for path in (root / "nbs").rglob("*.ipynb")]
    return sorted(p.with_suffix("").as_posix() for p in found if not any(part[0] in "._" for part in p.parts))


def paths(pages) -> str:
    return ", ".join(f"nbs/{page}.ipynb" for page in sorted(pages))


# ---- what the sources must satisfy ----


def check_navigation(
    listed: list[str],  # pages of the sidebar
    present: list[str],  # notebooks in nbs/
):
    "Every notebook is in the sidebar once, and nothing else is; raises `SiteError` naming what is not."
    lost, absent = set(present) - set(listed), set(listed) - set(present)
    twice = {page for page in listed if listed.count(page) > 1}
    if lost:
        raise SiteError(f"not in the sidebar of _quarto.yml: {paths(lost)}; list them under website.sidebar.contents.")
    if absent:
        raise SiteError(f"in the sidebar of _quarto.yml, but missing: {paths(absent)}; write them or take them out.")
    if twice:
        raise SiteError(f"more than once in the sidebar of _quarto.yml: {paths(twice)}.")


EXECUTED = ("tutorials/", "guides/", "benchmarks/")  # pages whose point is what their cells say


def check_outputs(
    sources: dict[str, list],  # page → cells
):
    "A page of tutorials, guides or benchmarks that shows code has outputs: nothing is run here."
    silent = [page for page, cells in sources.items() if page.startswith(EXECUTED) and is_silent(cells)]
    if silent:
        raise SiteError(f"code cells and no output at all, execute them and keep their outputs: {paths(silent)}.")


def is_silent(cells: list[dict]) -> bool:
    "Code on the page and not one output on it; hidden cells and standard error are not on it."
    shown = [cell for cell in cells if cell["cell_type"] == "code" and "hide" not in options(cell["source"])[0]]
    return bool(shown) and all(output.get("name") == "stderr" for cell in shown for output in cell.get("outputs", []))


def site_at(root: Path, sources: dict[str, list]) -> Site:
    "Where the pages, their names and the files of the repository are found."
    return Site(root, list(sources), repository_url(root), public_names(sources))


# ---- the site ----


def build_site(root: Path):
    "nbs/ → _docs/; an old _docs/ is replaced only when the new one is complete and checked."
    navigation = sections(root)
    pages = [page for _, entries in navigation for page, _ in entries]
    check_navigation(pages, notebooks(root))
    sources = {page: read_cells(root / "nbs" / f"{page}.ipynb") for page in pages}
    check_outputs(sources)
    work = root / "_proc"
    shutil.rmtree(work, ignore_errors=True)
    write_sources(site_at(root, sources), navigation, sources, work / "source")
    render(root, work)
    check_site(work / "html")
    shutil.rmtree(root / "_docs", ignore_errors=True)
    shutil.move(work / "html", root / "_docs")


def write_sources(site: Site, navigation: list, sources: dict[str, list], folder: Path):
    "Convert every notebook, for Sphinx."
    sys.path.insert(0, str(site.root))  # the package is imported for its docstrings
    for page, cells in sources.items():
        converted = convert(site, page, cells)
        if page == "index":
            converted += [landing(navigation, sources), toctrees(navigation)]
        write_notebook(folder / f"{page}.ipynb", converted)
    if (site.root / "figures").is_dir():
        shutil.copytree(site.root / "figures", folder / "figures")


def toctrees(navigation: list) -> dict:
    "The sidebar: one hidden toctree per section."

    def line(page, text):
        name = "self" if page == "index" else page
        return f"{text or 'Overview'} <{name}>" if text or page == "index" else name

    trees = [
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(line(*e) for e in entries) + "\n```"
        for caption, entries in navigation
    ]
    return cell_of("markdown", "\n\n".join(trees))


def landing(navigation: list, sources: dict) -> dict:
    "Every page with its one sentence, at the foot of the landing page."
    lines = ["## Contents", ""]
    for caption, entries in navigation:
        cards = [card(page, *title(page, sources[page])) for page, _ in entries if page != "index"]
        lines += [f'<div class="cards"><p class="cards-caption">{caption}</p>', *cards, "</div>", ""]
    return cell_of("markdown", "\n".join(lines))


def card(page: str, heading: str, sentence: str) -> str:
    "One page on the landing page."
    heading, sentence = (
        re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False)) for text in (heading, sentence)
    )
    return f'<a class="card" href="{page}.html"><strong>{heading}</strong><span>{sentence}</span></a>'


def write_notebook(path: Path, cells: list[dict]):
    "A notebook for MyST-NB."
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {
        "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"},
        "language_info": {"name": "python"},
    }
    numbered = [{"id": f"c{i}", **cell} for i, cell in enumerate(cells)]
    book = {"cells": numbered, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book), encoding="utf-8")


def render(root: Path, work: Path):
    "Sphinx, with every warning an error."
    from sphinx.cmd.build import build_main

    flags = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(root / "docs"), "-d", str(work / "doctrees")]
    if build_main([*flags, str(work / "source"), str(work / "html")]):
        raise SiteError("Sphinx found the problems listed above; nothing was written to _docs/.")
    if (root / "figures").is_dir():
        shutil.copytree(root / "figures", work / "html/figures", dirs_exist_ok=True)


# ---- the README ----


def build_readme(root: Path, check: bool = False):
    "nbs/index.ipynb → README.md; with `check`, only say whether it is current."
    site = Site(root, notebooks(root), repository_url(root))
    text = readme(site, read_cells(root / "nbs/index.ipynb"))
    path = root / "README.md"
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        raise SiteError("README.md is not current: run `python docs/build.py readme`.")


def main(
    arguments: list[str] | None = None,  # the command line
    root: Path = ROOT,  # the repository
) -> int:  # exit code
    "Build what was asked for; one sentence and 1 where that is not possible."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["site", "readme"])
    parser.add_argument("--check", action="store_true", help="readme: only say whether README.md is current")
    chosen = parser.parse_args(arguments)
    try:
        build_site(root) if chosen.what == "site" else build_readme(root, chosen.check)
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
