"Library notebooks, processed by nbdev: API cards instead of exported cells, their source folded below."

import ast
import re
from importlib import import_module
from pathlib import Path

from card import api_card
from convert import SiteError
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, _default_exp, exec_show_docs, rm_export
from nbdev.serve_drv import main as run_processors

EXPORTS = {"export", "exporti", "exports"}


def process(
    notebook: Path,  # a notebook in nbs/
    target: Path,  # where the processed notebook goes
):
    "Run nbdev's documentation processors over `notebook`, as nbdev's own `proc_nbs` does."
    target.parent.mkdir(parents=True, exist_ok=True)
    run_processors((notebook, target, Literate))


class Literate(FilterDefaults):
    "nbdev's processors, except that exported source stays on the page, folded."

    def base_procs(self):
        ours = {exec_show_docs: MakeCards, rm_export: FoldExports}
        return [ours.get(proc, proc) for proc in super().base_procs()]


class MakeCards(Processor):
    "What `show_doc` shows is taken from the exported module: no cell of the notebook is run."

    def begin(self):
        self.module = _default_exp(self.nb)

    def cell(self, cell):
        shown = re.search(r"^show_doc\((.*)\)$", cell.source, re.M) if cell.cell_type == "code" else None
        if not shown:
            return
        if shown[1].startswith("__"):
            del cell["source"]
            return
        data = {"text/markdown": api_card(self.find(shown[1].split(",")[0]))}
        cell.outputs = [{"output_type": "display_data", "metadata": {}, "data": data}]

    def find(self, name: str):
        "The object that the exported module has under a dotted name."
        full = f"{get_config().lib_path.name}.{self.module}".removesuffix(".__init__")
        try:
            found = import_module(full)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise SiteError(f"{full} has no {name} ({error}): run nbdev_export before building the site.") from error
        return found


class FoldExports(Processor):
    "Exported cells go, folded, below the cards of what they define; mere imports and hidden cells are dropped."

    def begin(self):
        cells = self.nb.cells
        for cell in [c for c in cells if c.cell_type == "code" and EXPORTS & c.directives_.keys()]:
            start = stop = cells.index(cell) + 1
            while stop < len(cells) and getattr(cells[stop], "has_sd", False):
                stop += 1
            cell.folded = stop > start
            cells[start - 1 : stop] = [*reversed(cells[start:stop]), cell]

    def cell(self, cell):
        directives = cell.directives_.keys()
        if directives & {"hide", "default_exp"}:
            del cell["source"]
        elif directives & EXPORTS and cell.cell_type == "code":
            if only_imports(cell.source):
                del cell["source"]
            elif cell.folded:
                cell.source = "#| code-fold: true\n#| code-summary: Source\n" + cell.source


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)
