"""Documentation: `python docs/build.py site` writes _docs/, `python docs/build.py readme [--check]` README.md.

The site is made of the notebooks in nbs/, in the order of `_quarto.yml`, by nbdev, MyST-NB and Sphinx. Nothing is run
and nothing is fetched. With Quarto installed, `nbdev_docs` renders the same sources.
"""

import argparse
import html
import json
import os
import re
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from convert import Site, SiteError, cell_of, convert, front_matter, options, read_cells, readme

ROOT = Path(__file__).resolve().parent.parent


# ---- navigation ----


def sections(
    root: Path,  # the repository
) -> list[tuple]:  # (caption, [(page, text or None), …]) per section
    "The navigation, as `_quarto.yml` has it."
    contents = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return [(section["section"], [entry(item) for item in section["contents"]]) for section in contents]


def entry(item) -> tuple:
    "A page and the text that names it in the navigation."
    href, text = (item["href"], item.get("text")) if isinstance(item, dict) else (item, None)
    return href.removesuffix(".ipynb"), text


def notebooks(root: Path) -> list[str]:
    "Every notebook in nbs/, as a page name."
    found = [path.relative_to(root / "nbs") for path in (root / "nbs").rglob("*.ipynb")]
    return sorted(p.with_suffix("").as_posix() for p in found if not any(part[0] in "._" for part in p.parts))


def check_navigation(
    listed: list[str],  # pages of the sidebar
    present: list[str],  # notebooks in nbs/
):
    "Every notebook is in the sidebar once, and nothing else is; raises `SiteError` naming what is not."
    name = lambda pages: ", ".join(f"nbs/{page}.ipynb" for page in sorted(pages))
    lost, absent = set(present) - set(listed), set(listed) - set(present)
    twice = {page for page in listed if listed.count(page) > 1}
    if lost:
        raise SiteError(f"not in the sidebar of _quarto.yml: {name(lost)}; list them under website.sidebar.contents.")
    if absent:
        raise SiteError(f"in the sidebar of _quarto.yml, but missing: {name(absent)}; write them or take them out.")
    if twice:
        raise SiteError(f"more than once in the sidebar of _quarto.yml: {name(twice)}.")


def check_titles(
    notebooks: dict[str, list],  # page → cells
):
    "nbdev drops whatever else a title cell holds, so it must hold nothing else."
    crowded = [
        f"nbs/{page}.ipynb"
        for page, cells in notebooks.items()
        if cells and not TITLE.fullmatch(cells[0]["source"]) and cells[0]["cell_type"] == "markdown"
    ]
    if crowded:
        raise SiteError(
            f"the first cell may hold '# Title' and '> one sentence' only, the rest belongs into the next one: {', '.join(crowded)}."
        )


EXECUTED = ("tutorials/", "guides/", "benchmarks/")  # pages whose point is what their cells say


def check_outputs(
    notebooks: dict[str, list],  # page → cells
):
    "A page of tutorials, guides or benchmarks that shows code shows what it says: nothing is run here, so its outputs must be in the notebook."
    silent = [
        f"nbs/{page}.ipynb" for page, cells in notebooks.items() if page.startswith(EXECUTED) and is_silent(cells)
    ]
    if silent:
        raise SiteError(f"code cells and no output at all, execute them and keep their outputs: {', '.join(silent)}.")


def is_silent(cells: list[dict]) -> bool:
    "Code on the page, and not one output that the site would show; a hidden cell is not on the page, and standard error is not shown."

    def on_page(cell):
        chosen, _ = options(cell["source"])
        return "hide" not in chosen and chosen.get("include") is not False

    shown = [cell for cell in cells if cell["cell_type"] == "code" and on_page(cell)]
    return bool(shown) and all(output.get("name") == "stderr" for cell in shown for output in cell.get("outputs", []))


TITLE = re.compile(r"# .+\s*(\n> .+\s*)?(\n- .+: .+\s*)*")


def site_at(root: Path, pages: list[str]) -> Site:
    "Addresses from settings.ini."
    ini = ConfigParser()
    ini.read(root / "settings.ini", encoding="utf-8")
    cfg = ini["DEFAULT"]
    return Site(root, pages, cfg["doc_host"] + cfg["doc_baseurl"], f"{cfg['git_url']}/blob/{cfg['branch']}")


# ---- the site ----


def build_site(root: Path):
    "nbs/ → _docs/; an old _docs/ is replaced only when the new one is complete and checked."
    from check import check_site

    navigation = sections(root)
    pages = [page for _, entries in navigation for page, _ in entries]
    check_navigation(pages, notebooks(root))
    sources = {page: read_cells(root / "nbs" / f"{page}.ipynb") for page in pages}
    check_titles(sources)
    check_outputs(sources)
    work = root / "_proc"
    shutil.rmtree(work, ignore_errors=True)
    write_sources(site_at(root, pages), navigation, work)
    render(root, work)
    check_site(work / "html")
    shutil.rmtree(root / "_docs", ignore_errors=True)
    shutil.move(work / "html", root / "_docs")


def write_sources(site: Site, navigation: list, work: Path):
    "Process and convert every notebook into `work`/source."
    os.chdir(site.root)
    sys.path.insert(0, str(site.root))
    from process import process

    for page in site.pages:
        process(Path("nbs") / f"{page}.ipynb", work / "nbs" / f"{page}.ipynb")
    processed = {page: read_cells(work / "nbs" / f"{page}.ipynb") for page in site.pages}
    site.anchors = frozenset(anchor for page, cells in processed.items() for anchor in api_anchors(page, cells))
    for page, cells in processed.items():
        converted = convert(site, page, cells)
        if page == "index":
            converted += [landing(navigation, processed), toctrees(navigation)]
        write_notebook(work / "source" / f"{page}.ipynb", converted)
    if (site.root / "figures").is_dir():
        shutil.copytree(site.root / "figures", work / "source/figures")


def api_anchors(page: str, cells: list[dict]) -> list[str]:
    "Where the API cards of a page can be linked to."
    cards = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    return [
        f"{page}.html#{name.lower()}" for source in cards for name in re.findall(r"^show_doc\(([\w.]+)", source, re.M)
    ]


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


def landing(navigation: list, processed: dict) -> dict:
    "Every page with its one sentence, at the foot of the landing page."
    lines = ["## Contents", ""]
    for caption, entries in navigation:
        cards = [card(page, front_matter(processed[page])) for page, _ in entries if page != "index"]
        lines += [f'<div class="cards"><p class="cards-caption">{caption}</p>', *cards, "</div>", ""]
    return cell_of("markdown", "\n".join(lines))


def card(page: str, meta: dict) -> str:
    "One page on the landing page."
    say = lambda key: re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(meta.get(key, "")), quote=False))
    return f'<a class="card" href="{page}.html"><strong>{say("title")}</strong><span>{say("description")}</span></a>'


def write_notebook(path: Path, cells: list[dict]):
    "A notebook for MyST-NB."
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {
        "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"},
        "language_info": {"name": "python"},
    }
    numbered = [{"id": f"c{i}", **cell} for i, cell in enumerate(cells)]
    path.write_text(
        json.dumps({"cells": numbered, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8"
    )


def render(root: Path, work: Path):
    "Sphinx, with every warning an error."
    from sphinx.cmd.build import build_main

    where = [str(work / "source"), str(work / "html")]
    arguments = [
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-c",
        str(root / "docs"),
        "-d",
        str(work / "doctrees"),
        *where,
    ]
    if build_main(arguments):
        raise SiteError("Sphinx found the problems listed above; nothing was written to _docs/.")
    if (root / "figures").is_dir():
        shutil.copytree(root / "figures", work / "html/figures", dirs_exist_ok=True)


# ---- the README ----


def build_readme(root: Path, check: bool = False):
    "nbs/index.ipynb → README.md; with `check`, only say whether it is current."
    text = readme(site_at(root, notebooks(root)), read_cells(root / "nbs/index.ipynb"))
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
