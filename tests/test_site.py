"The documentation's converter, on notebooks made here. The whole site is built by `make docs`, not by pytest."

import json
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "docs"))
import build
import check
import convert
from convert import SiteError, code_cell, markdown, options, site_links


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
    return build.site_at(root, build.notebooks(root))


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


@pytest.mark.parametrize(
    "option, tag",
    [
        ("echo: false", "remove-input"),
        ("output: false", "remove-output"),
        ("include: false", "remove-cell"),
        ("code-fold: true", "hide-input"),
    ],
)
def test_quarto_options_become_tags(site, option, tag):
    [cell] = code_cell(site, "masks", code(f"#| {option}\nx = 1", stream("1"), tags=["parameters"]), {})
    assert cell["metadata"]["tags"] == [tag, "parameters"] and cell["source"] == "x = 1"
    [plain] = code_cell(site, "masks", code("x = 1"), {})
    assert plain["metadata"]["tags"] == []


def test_page_options_hold_unless_a_cell_says_otherwise(site):
    tags = lambda source: code_cell(site, "masks", code(source), {"echo": False})[0]["metadata"]["tags"]
    assert tags("x = 1") == ["remove-input"] and tags("#| echo: true\nx = 1") == []


def test_captions_and_labels_reach_the_renderer(site):
    [cell] = code_cell(site, "masks", code('#| label: fig-x\n#| fig-cap: "A curve"\n#| fig-alt: "rising"\nplot()'), {})
    assert cell["metadata"]["mystnb"] == {"figure": {"caption": "A curve", "name": "fig-x"}, "image": {"alt": "rising"}}


def test_output_asis_becomes_markdown(site):
    source = "#| echo: false\n#| output: asis\nshow_doc(f)"
    cells = code_cell(site, "masks", code(source, shown(text_markdown=["### f\n", "text"], text_plain="f")), {})
    assert [(c["cell_type"], c["source"]) for c in cells] == [("markdown", "### f\ntext")]


# ---- links ----


@pytest.mark.parametrize(
    "page, written, expected",
    [
        ("index", "[x](masks.ipynb)", "[x](masks.html){.external}"),
        ("index", "[`x`](masks.ipynb#hold)", "[`x`](masks.html#hold){.external}"),
        ("index", "[[`x`](https://a.b/masks.html#x)](masks.ipynb#hold)", "[`x`](masks.html#hold){.external}"),
        (
            "index",
            "[what [`x`](https://a.b/m.html#x) and [`y`](#y) do](masks.ipynb)",
            "[what `x` and `y` do](masks.html){.external}",
        ),
        ("index", "[`x`](masks.ipynb) [then] [`y`](#y)", "[`x`](masks.html){.external} [then] [`y`](#y)"),
        ("methods/wanda", "[x](../masks.ipynb#hold)", "[x](../masks.html#hold){.external}"),
        ("masks", "[x](methods/wanda.html)", "[x](methods/wanda.html){.external}"),
        ("methods/wanda", "[x](../../LICENSE)", "[x](https://git.io/lab/blob/main/LICENSE){.external}"),
        ("methods/wanda", "![x](../../figures/curve.png){width=50%}", "![x](/figures/curve.png){width=50%}"),
        ("methods/wanda", '<img src="../../figures/curve.png">', '<img src="../figures/curve.png">'),
        ("masks", "[x](https://a.b/masks.ipynb){.big}", "[x](https://a.b/masks.ipynb){.external .big}"),
        ("masks", "[x](#here)", "[x](#here)"),
        ("masks", "`[x](masks.ipynb)`", "`[x](masks.ipynb)`"),
        ("masks", "```\n[x](masks.ipynb)\n```", "```\n[x](masks.ipynb)\n```"),
    ],
)
def test_links_work_on_the_site(site, page, written, expected):
    assert site_links(site, page, written) == expected


def test_links_made_by_nbdev_are_made_relative(site):
    site.anchors = frozenset({"masks.html#hold"})
    link = lambda anchor: convert.target(site, "methods/wanda", f"https://lab.io/lab/masks.html#{anchor}")
    assert link("hold") == "../masks.html#hold" and link("_private") == "../masks.html"


def test_links_in_outputs_work_too(site):
    [cell] = code_cell(site, "methods/wanda", code("f()", shown(text_html='<a href="../masks.ipynb">m</a>')), {})
    assert cell["outputs"][0]["data"]["text/html"] == '<a href="../masks.html">m</a>'


# ---- blocks ----


@pytest.mark.parametrize(
    "written, expected",
    [
        ("::: {.callout-note}\nText.\n:::", ":::{note}\nText.\n:::"),
        (':::{.callout-tip title="Fast"}\nText.\n:::', ":::{admonition} Fast\n:class: tip\n\nText.\n:::"),
        ("::: {.callout-warning}\n## Slow\n\nText.\n:::", ":::{admonition} Slow\n:class: warning\n\n\nText.\n:::"),
        ("::: {.column-margin .small}\nText.\n:::", ":::{container} column-margin small\nText.\n:::"),
        ("```\n::: {.callout-note}\n```", "```\n::: {.callout-note}\n```"),
    ],
)
def test_divs_become_directives(site, written, expected):
    assert markdown(site, "masks", written) == expected


def test_an_image_that_stands_alone_is_a_figure(site):
    written = 'Before.\n\n![A `curve`.](../figures/curve.png){#fig-c width=80% fig-alt="rising"}\n\nAfter.'
    assert markdown(site, "masks", written) == (
        "Before.\n\n:::{figure} /figures/curve.png\n:alt: rising\n:width: 80%\n"
        ":name: fig-c\n\nA `curve`.\n:::\n\nAfter."
    )
    assert "{figure}" not in markdown(site, "masks", "Inside ![x](../figures/curve.png) a sentence.")


def test_a_page_starts_with_title_and_sentence_and_cards_stand_below_their_heading(site):
    card = code("#| echo: false\n#| output: asis\nshow_doc(f)", shown(text_markdown="### f\n\n:::: {.api}\n::::"))
    raw = {"cell_type": "raw", "metadata": {}, "source": "---\ntitle: Masks\ndescription: Which stay.\n---\n"}
    cells = convert.convert(site, "masks", [raw, card, md("### Deep\n\n```\n# no heading\n```"), card])
    assert [cell["source"].split("\n")[0] for cell in cells] == ["# Masks", "## f", "### Deep", "#### f"]
    assert ":::{container} lead\nWhich stay.\n:::" in cells[0]["source"]
    with pytest.raises(SiteError, match="nbs/masks.ipynb has no title"):
        convert.convert(site, "masks", [md("text")])


def test_an_image_says_what_the_text_before_it_says(site):
    cells = [
        {"cell_type": "raw", "metadata": {}, "source": "---\ntitle: Masks\n---"},
        md("## A *curve*\n\nIt rises with [`k`](masks.ipynb). Then it falls."),
        code("plot()", shown(image_png="x")),
    ]
    assert convert.convert(site, "masks", cells)[-1]["metadata"]["mystnb"]["image"] == {
        "alt": "Figure: A curve – It rises with k."
    }
    cells[-1] = code('#| fig-alt: "own words"\nplot()', shown(image_png="x"))
    assert convert.convert(site, "masks", cells)[-1]["metadata"]["mystnb"]["image"] == {"alt": "own words"}
    cells[-1] = code("1 + 1", shown(text_plain="2"))
    assert "mystnb" not in convert.convert(site, "masks", cells)[-1]["metadata"]


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
    text = pytest.importorskip("card").api_card(scores)
    assert text.startswith(
        "### scores\n\n:::: {.api}\n```python\nscores(weight, *, per='row', key=len)\n```\n\nHow important"
    )
    assert '| `weight` | `list` |  | (out, in), any "a"\\|"b" |' in text
    assert "| `per` | `str\\|None` | `'row'` | where to compare |" in text
    assert "| *returns* | `list` |  | like `weight` |" in text
    assert "_memo" not in text and " at 0x" not in text


def test_a_class_lists_its_public_methods():
    api_card = pytest.importorskip("card").api_card
    assert "Cutter(edge=1)" in api_card(Cutter) and "| `.cut` | Cut once. |" in api_card(Cutter)
    assert "_hidden" not in api_card(Cutter) and "class Plain(ValueError)" in api_card(Plain)


def test_a_long_signature_takes_one_line_per_parameter():
    def many(first_parameter, second_parameter, third_parameter, fourth_parameter, fifth=(1, 2)):
        "Many."

    shown = pytest.importorskip("card").signature(many)
    assert shown.splitlines()[1:3] == ["    first_parameter,", "    second_parameter,"]
    assert "    fifth=(1, 2),\n)" in shown


def test_what_a_default_cannot_say_is_left_out():
    def quiet(
        told=lambda line: None,
        place=None,
        say=print,  # called with each line
    ):
        "Quiet."

    card = pytest.importorskip("card")
    assert [line.strip(" ,") for line in card.signature(quiet).splitlines()[1:4]] == [
        "told=...",
        "place=None",
        "say=print",
    ]
    assert "| `place` |  | `None` |  |" in card.parameters(
        quiet
    ) and "| `say` | `Callable` | `print` | called with each line |" in card.parameters(quiet)


def test_exported_cells_become_cards_above_their_folded_source(tmp_path, monkeypatch):
    process = pytest.importorskip("process")
    monkeypatch.chdir(REPOSITORY)
    cells = [
        md("# Basics\n\n> Three things."),
        code("#| default_exp basics"),
        code("#| export\nimport json"),
        code("#| export\ndef lookup(): pass\ndef write_json(): pass"),
        code("#| export\nKINDS = 1"),
        code("#| hide\nsecret = 1"),
        code("raise SystemExit('cells are not run')"),
    ]
    write(tmp_path / "basics.ipynb", *cells)
    process.process(tmp_path / "basics.ipynb", tmp_path / "out.ipynb")
    found = [cell["source"] for cell in convert.read_cells(tmp_path / "out.ipynb")[2:]]
    assert [text.splitlines()[-1] for text in found[:2]] == ["show_doc(lookup)", "show_doc(write_json)"]
    assert options(found[2]) == (
        {"code-fold": True, "code-summary": "Source"},
        "def lookup(): pass\ndef write_json(): pass",
    )
    assert found[3:] == ["KINDS = 1", "raise SystemExit('cells are not run')"]


def test_a_definition_that_was_not_exported_is_named(tmp_path, monkeypatch):
    process = pytest.importorskip("process")
    monkeypatch.chdir(REPOSITORY)
    write(tmp_path / "basics.ipynb", code("#| default_exp basics"), code("#| export\ndef forgotten(): pass"))
    with pytest.raises(SiteError, match="pruneresearch.basics has no forgotten.*nbdev_export"):
        process.process(tmp_path / "basics.ipynb", tmp_path / "out.ipynb")


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


def test_text_that_nbdev_would_drop_stops_the_build():
    build.check_titles({"masks": [md("# Masks\n\n> Which stay.\n")], "cli": [md("# Shell")]})
    with pytest.raises(SiteError, match="next one: nbs/masks.ipynb, nbs/cli.ipynb"):
        build.check_titles(
            {"masks": [md("# Masks\n\n> Which.\n\nMore.")], "cli": [md("# Shell\n\nText.")], "bench": [md("# Bench")]}
        )


@pytest.mark.parametrize(
    "cell, silent",
    [
        (code("1 + 1"), True),
        (code("1 + 1", shown(text_plain="2")), False),
        (code("print(2)", stream("2")), False),
        (code("warn()", {"output_type": "stream", "name": "stderr", "text": ["late"]}), True),
        (code("#| hide\nassert True"), False),
        (code("#| include: false\nx = 1"), False),
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
            "[m](masks.ipynb#hold), [w](methods/wanda.html), [l](../LICENSE), [s](https://a.b)\n\n![c](../figures/curve.png)"
        ),
        code("#| hide\nsecret = 1"),
        code("#| default_exp lab"),
        code("#| echo: false\nprint(2)", stream("2\n")),
        code("table()", shown(text_markdown=["|a|\n", "|-|"], text_plain="T")),
        code("#| output: false\nf()", stream("no")),
        md('::: {.callout-note title="Fair"}\nSame data.\n\nSame seeds.\n:::'),
    )
    assert build.main(["readme"], root) == 0
    assert (root / "README.md").read_text() == (
        "# Lab\n\n> One sentence.\n\n[m](nbs/masks.ipynb), [w](nbs/methods/wanda.ipynb), [l](LICENSE), [s](https://a.b)\n\n"
        "![c](figures/curve.png)\n\n```text\n2\n```\n\n```python\ntable()\n```\n\n|a|\n|-|\n\n```python\nf()\n```\n\n"
        "> [!NOTE]\n> **Fair**\n>\n> Same data.\n>\n> Same seeds.\n"
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
    build.check_titles(sources)
    build.check_outputs(sources)
    trees = build.toctrees(navigation)["source"]
    shown = [
        line.rsplit("<", 1)[-1].rstrip(">") for line in trees.splitlines() if line and not line.startswith(("`", ":"))
    ]
    assert shown == ["self" if page == "index" else page for page in listed]
    assert [caption for caption, _ in navigation] == ["Start", "Methods", "Experiments", "Guides", "Reference"]
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
