"The documentation's converter, on notebooks made here. The whole site is built by `make docs`, not by pytest."

import json
from dataclasses import dataclass
from pathlib import Path

import build
import card
import check
import convert
import pytest
from convert import SiteError, markdown, options

from pruneresearch import FOLDERS
from pruneresearch.pruning.request import asked, takes

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def root(tmp_path):
    "A repository with two listed notebooks and one figure."
    write(tmp_path / "nbs/index.ipynb", md("# Lab\n\n> One sentence."), md("See [masks](masks.ipynb)."))
    write(tmp_path / "nbs/masks.ipynb", md("# Masks"))
    write(tmp_path / "nbs/methods/wanda.ipynb", md("# Wanda"))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/curve.png").write_bytes(b"png")
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "settings.ini").write_text(
        "[DEFAULT]\ndoc_host=https://lab.io\ndoc_baseurl=/lab\ngit_url=https://git.io/lab\nbranch=main\n"
    )
    sidebar(tmp_path, "index.ipynb", {"text": "All masks", "href": "masks.ipynb"}, "methods/wanda.ipynb")
    return tmp_path


@pytest.fixture
def site(root):
    return build.site_at(root, {page: convert.read_cells(root / f"nbs/{page}.ipynb") for page in build.notebooks(root)})


def on_page(site, cell, page="masks"):
    "What a page shows of a code cell."
    return convert.code_cells(site, page, cell, "A curve", None, 1)


def md(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source, *outputs, tags=()):
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": list(outputs)}


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": [text]}


def shown(**data):
    return {"output_type": "display_data", "metadata": {}, "data": {k.replace("_", "/"): v for k, v in data.items()}}


def write(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


def sidebar(root, *contents):
    website = {"website": {"sidebar": {"contents": [{"section": "Start", "contents": contents}]}}}
    (root / "_quarto.yml").write_text(json.dumps(website))  # JSON is YAML


# ---- options ----


def test_options_are_read_and_removed():
    chosen, code = options(
        '#| echo: false\n#| fig-cap: "A: b"\n#| export scores\n#|hide\n\nx = 1  #| no option\n# |x| is a norm'
    )
    assert chosen == {"echo": False, "fig-cap": "A: b", "export": "scores", "hide": True}
    assert code == "x = 1  #| no option\n# |x| is a norm"


@pytest.mark.parametrize("option, tag", [("echo: false", "remove-input"), ("code-fold: true", "hide-input")])
def test_options_become_tags(site, option, tag):
    [cell] = on_page(site, code(f"#| {option}\nx = 1", stream("1"), tags=["parameters"]))
    assert cell["metadata"]["tags"] == [tag, "parameters"] and cell["source"] == "x = 1"
    [plain] = on_page(site, code("x = 1"))
    assert plain["metadata"]["tags"] == []


@pytest.mark.parametrize(
    "source", ["#| hide\nsecret = 1", "#| default_exp masks", "#| export\nimport json", "#| exporti\nimport json"]
)
def test_hidden_cells_and_exported_imports_are_not_shown(site, source):
    assert on_page(site, code(source)) == []


def test_magics_are_not_shown(site):
    assert on_page(site, code("%matplotlib inline\nx = 5 % 3"))[0]["source"] == "x = 5 % 3"


def test_captions_reach_the_renderer(site):
    [cell] = on_page(site, code('#| fig-cap: "A curve"\n#| fig-alt: "rising"\nplot()', shown(image_png="x")))
    assert cell["metadata"]["mystnb"] == {"figure": {"caption": "A curve"}, "image": {"alt": "rising"}}


@pytest.mark.parametrize(
    "cell, message",
    [
        (code("#| output: asis\nx = 1"), "unknown cell options.*output.*known are.*fig-alt"),
        (md("::: {.callout-note}\nText.\n:::"), "nbs/masks.ipynb holds '::: {.callout-note}': write plain Markdown"),
        (md("![x](../figures/curve.png){width=50%}"), "plain Markdown"),
    ],
)
def test_what_the_dialect_does_not_have_is_refused(site, cell, message):
    with pytest.raises(SiteError, match=message):
        convert.convert(site, "masks", [md("# Masks"), cell])
    convert.convert(site, "masks", [md("# Masks"), md("```\n::: {.callout-note}\n```")])


# ---- links ----


@pytest.mark.parametrize(
    "page, written, expected",
    [
        ("index", "[x](masks.ipynb)", "[x](masks.html){.external}"),
        ("index", "[`x`](masks.ipynb#hold)", "[`x`](masks.html#hold){.external}"),
        ("index", "[`x`](masks.ipynb) [then] [`y`](#y)", "[`x`](masks.html){.external} [then] [`y`](#y)"),
        ("methods/wanda", "[x](../masks.ipynb#hold)", "[x](../masks.html#hold){.external}"),
        ("masks", "[x](methods/wanda.html)", "[x](methods/wanda.html){.external}"),
        ("methods/wanda", "[x](../../LICENSE)", "[x](https://git.io/lab/blob/main/LICENSE){.external}"),
        ("methods/wanda", "![x](../../figures/curve.png)", "![x](/figures/curve.png)"),
        ("masks", "[x](https://a.b/masks.ipynb)", "[x](https://a.b/masks.ipynb){.external}"),
        ("masks", "[x](#here)", "[x](#here)"),
        ("masks", "`[x](masks.ipynb)`", "`[x](masks.ipynb)`"),
        ("masks", "```\n[x](masks.ipynb)\n```", "```\n[x](masks.ipynb)\n```"),
    ],
)
def test_links_work_on_the_site(site, page, written, expected):
    assert markdown(site, page, written) == expected


@pytest.mark.parametrize(
    "written, expected",
    [
        ("Call `hold`.", "Call [`hold`](../masks.html#hold){.external}."),
        ("Call `hold()`.", "Call [`hold()`](../masks.html#hold){.external}."),
        ("`hold.enter` and `_private`", "[`hold.enter`](../masks.html#hold){.external} and `_private`"),
        ("## `hold`", "## `hold`"),
        ("[`hold`](https://a.b)", "[`hold`](https://a.b){.external}"),
        ("```\n`hold`\n```", "```\n`hold`\n```"),
        ("`hold(masks)` or `held`", "`hold(masks)` or `held`"),
    ],
)
def test_names_lead_to_their_documentation(site, written, expected):
    site.names["hold"] = "masks.html#hold"
    assert markdown(site, "methods/wanda", written) == expected


def test_the_names_of_pages_are_their_public_definitions():
    page = [
        code("#| default_exp a"),
        code("#| export\ndef hold(): pass\nclass _Hidden: pass"),
        code("def shown(): pass"),
    ]
    other = [code("#| default_exp b"), code("#| export\ndef twice(): pass")]
    names = convert.public_names({"masks": page, "b": other, "c": [*other, md("`x`")], "free": page[1:]})
    assert names == {"hold": "masks.html#hold"}


def test_links_in_outputs_work_too(site):
    outputs = [shown(text_html='<a href="../masks.ipynb">m</a> <img src="../../figures/curve.png">')]
    [cell] = on_page(site, code("f()", *outputs), "methods/wanda")
    expected = '<a href="../masks.html">m</a> <img src="../figures/curve.png">'
    assert cell["outputs"][0]["data"]["text/html"] == expected


# ---- pages ----


def test_a_page_starts_with_title_and_sentence(site):
    cells = convert.convert(site, "masks", [md("# Masks\n\n> Which stay."), md("### Deep\n\n```\n# no heading\n```")])
    assert [cell["source"].split("\n")[0] for cell in cells] == ["# Masks", "### Deep"]
    assert ":::{container} lead\nWhich stay.\n:::" in cells[0]["source"]
    with pytest.raises(SiteError, match="nbs/masks.ipynb has no title"):
        convert.convert(site, "masks", [md("text")])


def test_an_image_says_what_the_text_before_it_says(site):
    def alt(*cells):
        last = convert.convert(site, "masks", [md("# Masks"), md(prose), *cells])[-1]
        return last["metadata"].get("mystnb", {}).get("image")

    prose = "## A *curve*\n\nIt rises with [`k`](masks.ipynb). Then it falls."
    assert alt(code("plot()", shown(image_png="x"))) == {"alt": "Figure: A curve – It rises with k."}
    assert alt(code('#| fig-alt: "own words"\nplot()', shown(image_png="x"))) == {"alt": "own words"}
    assert alt(code("1 + 1", shown(text_plain="2"))) is None


@pytest.mark.parametrize(
    "image, mute",
    [
        ('<img src="a/b.png" alt="A curve">', False),
        ('<img src="a/b.png">', True),
        ('<img src="a/b.png" alt="">', True),
        ('<img src="a/b.png" alt="../b.png">', True),
    ],
)
def test_images_without_alternative_text_are_found(tmp_path, image, mute):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.png").write_bytes(b"png")
    (tmp_path / "page.html").write_text(f"<html><body>{image}</body></html>")
    if not mute:
        return check.check_site(tmp_path)
    with pytest.raises(SiteError, match="no alternative text: a/b.png"):
        check.check_site(tmp_path)


@pytest.mark.parametrize(
    "text, unread",
    [
        ("see [x](masks.html){.external}", True),
        ("<code>[x](masks.html)</code>", False),
        ("<pre>f()[0](a.html)</pre>", False),
        ("a list[0](not a link)", False),
    ],
)
def test_links_that_were_left_in_markdown_are_found(tmp_path, text, unread):
    (tmp_path / "page.html").write_text(f"<p>{text}</p>")
    if not unread:
        return check.check_site(tmp_path)
    with pytest.raises(SiteError, match="left in markdown"):
        check.check_site(tmp_path)


@pytest.mark.parametrize(
    "title, anchor",
    [
        ("What to expect", "what-to-expect"),
        ("Masks.apply", "masks.apply"),
        ("whole_file", "whole_file"),
        ("1. Why, really?", "why-really"),
    ],
)
def test_anchors_are_those_of_quarto(title, anchor):
    assert convert.slug(title) == anchor


# ---- API cards ----


def scores(
    weight: list,  # (out, in), any "a"|"b"
    *,
    per: "str|None" = "row",  # where to compare
    key=len,
    _memo=None,
) -> list:  # like `weight`
    "How important each weight is."


class Plain(ValueError):
    "A kind of error."


class Cutter:
    "Cuts."

    def __init__(self, edge=1):
        self.edge = edge

    def cut(self):
        "Cut once.\n\nNot twice."

    def _hidden(self):
        "Not shown."


def test_a_function_has_signature_docstring_and_parameters():
    text = card.api_card(scores)
    assert text.startswith(
        "### scores\n\n::::{container} api\n```python\nscores(weight, *, per='row', key=len)\n```\n\nHow important"
    )
    assert '| `weight` | `list` |  | (out, in), any "a"\\|"b" |' in text
    assert "| `per` | `str\\|None` | `'row'` | where to compare |" in text
    assert "| *returns* | `list` |  | like `weight` |" in text
    assert "_memo" not in text and " at 0x" not in text


def test_a_class_lists_its_public_methods():
    assert "Cutter(edge=1)" in card.api_card(Cutter) and "| `.cut` | Cut once. |" in card.api_card(Cutter)
    assert "_hidden" not in card.api_card(Cutter) and "class Plain(ValueError)" in card.api_card(Plain)


def test_a_long_signature_takes_one_line_per_parameter():
    def many(first_parameter, second_parameter, third_parameter, fourth_parameter, fifth=(1, 2)):
        "Many."

    shown = card.signature(many)
    assert shown.splitlines()[1:3] == ["    first_parameter,", "    second_parameter,"]
    assert "    fifth=(1, 2),\n)" in shown


def test_what_a_default_cannot_say_is_left_out():
    def quiet(
        told=lambda line: None,
        place=None,
        say=print,  # called with each line
    ):
        "Quiet."

    assert [line.strip(" ,") for line in card.signature(quiet).splitlines()[1:4]] == [
        "told=...",
        "place=None",
        "say=print",
    ]
    assert "| `place` |  | `None` |  |" in card.parameters(
        quiet
    ) and "| `say` | `Callable` | `print` | called with each line |" in card.parameters(quiet)


@dataclass
class Order:
    "What can be ordered."

    size: int = asked(1, "how large, from 1")
    colour: str = asked("red", "one of red and blue")


@takes(Order, without=("colour",))
def buy(
    shop,  # where
    **fields,  # of the order
):
    "Buy something."


def test_the_fields_of_a_record_are_documented_where_they_are_taken():
    assert "buy(shop, *, size=1)" in card.api_card(buy)
    assert card.parameters(buy).splitlines()[2:] == [
        "| `shop` |  |  | where |",
        "| `size` | `int` | `1` | how large, from 1 |",
    ]
    assert "| `colour` | `str` | `'red'` | one of red and blue |" in card.parameters(Order)


def test_exported_cells_become_cards_above_their_folded_source(site):
    cells = [
        md("# Errors\n\n> Two things."),
        code("#| default_exp basics.errors"),
        code("#| export\nimport json"),
        md("## Kinds"),
        code("#| export\nclass UsageError: pass\ndef lookup(): pass"),
        code("#| export\nKINDS = 1"),
        code("raise SystemExit('cells are not run')"),
    ]
    found = convert.convert(site, "basics/errors", cells)
    assert [cell["source"].splitlines()[0] for cell in found[1:4]] == ["## Kinds", "### UsageError", "### lookup"]
    assert found[4]["source"].startswith("class UsageError") and found[4]["metadata"]["tags"] == ["hide-input"]
    assert found[4]["metadata"]["mystnb"]["code_prompt_show"] == "Source"
    assert [cell["source"] for cell in found[5:]] == ["KINDS = 1", "raise SystemExit('cells are not run')"]


def test_a_definition_that_was_not_exported_is_named(site):
    cells = [md("# Errors"), code("#| default_exp basics.errors"), code("#| export\ndef forgotten(): pass")]
    with pytest.raises(SiteError, match="pruneresearch.basics.errors has no forgotten.*nbdev_export"):
        convert.convert(site, "basics/errors", cells)


# ---- navigation ----


def test_the_sidebar_is_read(root):
    assert build.sections(root) == [("Start", [("index", None), ("masks", "All masks"), ("methods/wanda", None)])]


@pytest.mark.parametrize(
    "listed, message",
    [
        (["index", "masks"], "not in the sidebar.*nbs/methods/wanda.ipynb"),
        (["index", "masks", "methods/wanda", "cli"], "missing: nbs/cli.ipynb"),
        (["index", "masks", "masks", "methods/wanda"], "more than once.*nbs/masks.ipynb"),
    ],
)
def test_sidebar_and_notebooks_must_agree(root, listed, message):
    with pytest.raises(SiteError, match=message):
        build.check_navigation(listed, build.notebooks(root))


def test_an_unlisted_notebook_stops_the_build(root, capsys):
    write(root / "nbs/lost.ipynb", md("# Lost"))
    assert build.main(["site"], root) == 1
    assert "nbs/lost.ipynb" in capsys.readouterr().err and not (root / "_docs").exists()


def test_sections_inside_a_section_are_named_after_both(root):
    website = {"section": "Reference", "contents": ["index.ipynb", {"section": "data", "contents": ["masks.ipynb"]}]}
    (root / "_quarto.yml").write_text(json.dumps({"website": {"sidebar": {"contents": [website]}}}))
    assert build.sections(root) == [("Reference", [("index", None)]), ("Reference · data", [("masks", None)])]


@pytest.mark.parametrize(
    "first", [md("# Masks\n\n> Which.\n\nMore."), md("# Masks\n\nText."), md("Masks"), code("# Masks")]
)
def test_a_title_cell_holds_a_title_and_one_sentence_only(first):
    assert convert.title("masks", [md("# Masks\n\n> Which stay.\n")]) == ("Masks", "Which stay.")
    assert convert.title("cli", [md("# Shell")]) == ("Shell", "")
    with pytest.raises(SiteError, match="nbs/masks.ipynb has no title.*next one"):
        convert.title("masks", [first])


@pytest.mark.parametrize(
    "cell, silent",
    [
        (code("1 + 1"), True),
        (code("1 + 1", shown(text_plain="2")), False),
        (code("print(2)", stream("2")), False),
        (code("warn()", {"output_type": "stream", "name": "stderr", "text": ["late"]}), True),
        (code("#| hide\nassert True"), False),
        (md("Only words."), False),
    ],
)
def test_a_page_whose_point_is_its_outputs_has_some(cell, silent):
    title = md("# Masks")
    if silent:
        for folder in ("tutorials", "guides", "benchmarks"):
            with pytest.raises(SiteError, match=f"no output at all.*nbs/{folder}/masks.ipynb"):
                build.check_outputs({f"{folder}/masks": [title, cell]})
        build.check_outputs({"masks": [title, cell], "guides/masks": [title, cell, code("1", shown(text_plain="1"))]})
    else:
        build.check_outputs({"tutorials/masks": [title, cell]})


def test_a_page_that_was_never_executed_stops_the_build(root, capsys):
    write(root / "nbs/guides/late.ipynb", md("# Late"), code("1 + 1"))
    sidebar(root, "index.ipynb", "masks.ipynb", "methods/wanda.ipynb", "guides/late.ipynb")
    assert build.main(["site"], root) == 1
    assert "nbs/guides/late.ipynb" in capsys.readouterr().err and not (root / "_docs").exists()


# ---- the finished site ----


def test_dead_links_and_foreign_files_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#end">b</a><a href="#top">t</a><a href="https://x.y">out</a>'
    )
    (tmp_path / "b.html").write_text('<p id="end">B</p>')
    check.check_site(tmp_path)
    (tmp_path / "b.html").write_text('<img src="no.png"><script src="https://cdn.x/y.js"></script>')
    (tmp_path / "s.css").write_text("@import url('https://fonts.x/f.css')")
    with pytest.raises(SiteError) as error:
        check.check_site(tmp_path)
    for problem in (
        "a.html: leads nowhere: b.html#end",
        "b.html: leads nowhere: no.png",
        "b.html: fetches https://cdn.x/y.js",
        "s.css: fetches https://fonts.x/f.css",
    ):
        assert problem in str(error.value)


# ---- README ----


def test_readme_shows_prose_code_and_text(root):
    write(
        root / "nbs/index.ipynb",
        md("# Lab\n\n> One sentence."),
        md(
            "[m](masks.ipynb#hold), [w](methods/wanda.html), [l](../LICENSE), [s](https://a.b)\n\n"
            "![c](../figures/curve.png)"
        ),
        code("#| hide\nsecret = 1"),
        code("#| default_exp lab"),
        code("#| echo: false\nprint(2)", stream("2\n")),
        code("table()", shown(text_markdown=["|a|\n", "|-|"], text_plain="T")),
    )
    assert build.main(["readme"], root) == 0
    assert (root / "README.md").read_text() == (
        "# Lab\n\n> One sentence.\n\n"
        "[m](nbs/masks.ipynb), [w](nbs/methods/wanda.ipynb), [l](LICENSE), [s](https://a.b)\n\n"
        "![c](figures/curve.png)\n\n```text\n2\n```\n\n```python\ntable()\n```\n\n|a|\n|-|\n"
    )


def test_readme_check_says_in_one_sentence_that_it_is_old(root, capsys):
    assert build.main(["readme", "--check"], root) == 1
    assert build.main(["readme"], root) == 0 and build.main(["readme", "--check"], root) == 0
    write(root / "nbs/index.ipynb", md("# Lab"), md("New."))
    capsys.readouterr()
    assert build.main(["readme", "--check"], root) == 1
    assert capsys.readouterr().err == "README.md is not current: run `python docs/build.py readme`.\n"
    assert "New." not in (root / "README.md").read_text()


def test_readme_refuses_dead_links_and_drawings_without_a_file(root, capsys):
    for cell, message in (
        (md("[x](nowhere.ipynb)"), "'nowhere.ipynb'"),
        (code("plot()", shown(image_png="x")), "drawing"),
    ):
        write(root / "nbs/index.ipynb", md("# Lab"), cell)
        assert build.main(["readme"], root) == 1 and message in capsys.readouterr().err
        assert not (root / "README.md").exists()


# ---- this repository's own pages ----


def test_the_site_covers_every_notebook_in_the_order_of_the_sidebar():
    navigation = build.sections(REPOSITORY)
    listed = [page for _, entries in navigation for page, _ in entries]
    build.check_navigation(listed, build.notebooks(REPOSITORY))
    sources = {page: convert.read_cells(REPOSITORY / "nbs" / f"{page}.ipynb") for page in listed}
    assert all(convert.title(page, cells) for page, cells in sources.items())
    build.check_outputs(sources)
    trees = build.toctrees(navigation)["source"]
    shown = [
        line.rsplit("<", 1)[-1].rstrip(">") for line in trees.splitlines() if line and not line.startswith(("`", ":"))
    ]
    assert shown == ["self" if page == "index" else page for page in listed]
    captions = [caption for caption, _ in navigation]
    assert captions[:5] == ["Start", "Methods", "Experiments", "Guides", "Reference"]
    assert captions[5:] == [f"Reference · {folder}" for folder in FOLDERS if folder != "methods"]
    assert (REPOSITORY / "nbs/_quarto.yml").read_bytes() == (
        REPOSITORY / "_quarto.yml"
    ).read_bytes()  # nbdev looks in nbs/


def test_every_page_that_is_made_of_rows_is_executed_by_make():
    pages = (REPOSITORY / "Makefile").read_text(encoding="utf-8").split("PAGES :=")[1].splitlines()[0]
    for page in build.notebooks(REPOSITORY):
        source = "".join(
            cell["source"]
            for cell in convert.read_cells(REPOSITORY / "nbs" / f"{page}.ipynb")
            if cell["cell_type"] == "code"
        )
        if "saved_rows(" in source and page.startswith(("guides/", "benchmarks/r")):
            assert f"{page.split('/')[1]}.ipynb" in pages or "guides/*.ipynb" in pages
