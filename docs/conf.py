"Sphinx's settings; name and version come from settings.ini."

import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

ini = ConfigParser()
ini.read(HERE.parent / "settings.ini", encoding="utf-8")
settings = ini["DEFAULT"]

project = html_title = settings["title"]
author, copyright, release = settings["author"], settings["copyright"], settings["version"]
language = "en"
smartquotes = False
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.githubpages"]
exclude_patterns = ["figures"]

nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_merge_streams = True
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
nb_code_prompt_show = nb_code_prompt_hide = "Code"
myst_enable_extensions = [
    "colon_fence",
    "dollarmath",
    "amsmath",
    "attrs_inline",
    "html_image",
    "deflist",
    "strikethrough",
]
myst_heading_anchors = 5
myst_dmath_double_inline = True
myst_heading_slug_func = "convert.slug"
suppress_warnings = ["myst.strikethrough"]

mathjax_path = "mathjax/tex-svg-full.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}}

html_theme = "furo"
html_static_path = ["theme"]
templates_path = ["templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "repository.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_css_files = ["site.css"]
html_favicon = "theme/logo.svg"
html_copy_source = html_show_sourcelink = html_show_sphinx = html_use_index = False
pygments_style, pygments_dark_style = "friendly", "github-dark"
LIGHT = {
    "font-stack": "Inter, system-ui, sans-serif",
    "font-stack--monospace": "'JetBrains Mono', ui-monospace, monospace",
    "font-stack--headings": "Inter, system-ui, sans-serif",
    "color-brand-primary": "#0b6e4f",
    "color-brand-content": "#0b6e4f",
    "color-brand-visited": "#0b6e4f",
    "color-background-secondary": "#f7f8f7",
    "color-code-background": "#f6f8f6",
    "color-foreground-primary": "#1c2522",
    "color-sidebar-link-text--top-level": "#3d4a45",
}
DARK = {
    "color-brand-primary": "#5fd3a5",
    "color-brand-content": "#5fd3a5",
    "color-brand-visited": "#5fd3a5",
    "color-background-primary": "#131716",
    "color-background-secondary": "#181d1b",
    "color-code-background": "#1a201e",
    "color-foreground-primary": "#d6dedb",
    "color-sidebar-link-text--top-level": "#b4c0bb",
}
html_theme_options = {
    "light_css_variables": LIGHT,
    "dark_css_variables": DARK,
    "light_logo": "logo.svg",
    "dark_logo": "logo.svg",
    "sidebar_hide_name": False,
    "source_repository": settings["git_url"],
    "source_branch": settings["branch"],
    "footer_icons": [],
    "top_of_page_buttons": [],
}
