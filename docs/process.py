"Library notebooks, processed by nbdev: API cards instead of exported cells, their source folded below."
import ast, inspect, re
from importlib import import_module
from pathlib import Path

from fastcore.docments import MarkdownRenderer, docments
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, _default_exp, exec_show_docs, rm_export
from nbdev.serve_drv import main as run_processors

from convert import SiteError

EXPORTS = {"export", "exporti", "exports"}
MISSING = inspect.Parameter.empty


def process(
    notebook: Path,  # a notebook in nbs/
    target: Path,    # where the processed notebook goes
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
        if not shown: return
        if shown[1].startswith("__"):
            del cell["source"]
            return
        data = {"text/markdown": ApiCard(self.find(shown[1].split(",")[0]))._repr_markdown_()}
        cell.outputs = [{"output_type": "display_data", "metadata": {}, "data": data}]

    def find(self, name: str):
        "The object that the exported module has under a dotted name."
        full = f"{get_config().lib_path.name}.{self.module}".removesuffix(".__init__")
        try:
            found = import_module(full)
            for part in name.split("."): found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise SiteError(f"{full} has no {name} ({error}): run nbdev_export before building the site.") from error
        return found


class FoldExports(Processor):
    "Exported cells go, folded, below the cards of what they define; hidden cells and mere imports are dropped."
    def begin(self):
        cells = self.nb.cells
        for cell in [c for c in cells if c.cell_type == "code" and EXPORTS & c.directives_.keys()]:
            start = stop = cells.index(cell) + 1
            while stop < len(cells) and getattr(cells[stop], "has_sd", False): stop += 1
            cells[start-1:stop] = [*reversed(cells[start:stop]), cell]

    def cell(self, cell):
        directives = cell.directives_.keys()
        if directives & {"hide", "default_exp"}: del cell["source"]
        elif directives & EXPORTS and cell.cell_type == "code":
            if only_imports(cell.source): del cell["source"]
            else: cell.source = "#| code-fold: true\n#| code-summary: Source\n" + cell.source


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)


class ApiCard(MarkdownRenderer):
    "What `show_doc` puts on a page: heading, signature, docstring, parameters, source link."
    def _repr_markdown_(self):
        signature = f"```python\n{self.signature()}\n```"
        body = [signature, inspect.cleandoc(self.docs or ""), self.parameters(), self.methods(), self.source()]
        return f"### {self.nm}\n\n::::{{container}} api\n" + "\n\n".join(filter(None, body)) + "\n::::"

    def signature(self) -> str:
        "The call, without types (the table has them), one parameter a line where it is long."
        if inspect.isclass(self.sym) and "__init__" not in vars(self.sym):
            return f"class {self.nm}({', '.join(base.__name__ for base in self.sym.__bases__)})"
        if self.sig is None: return self.nm
        bare = [p.replace(annotation=MISSING) for p in self.sig.parameters.values() if p.name != "self"]
        call = re.sub(r"<(?:function|class) '?([\w.]+)[^>]*>", r"\1", str(inspect.Signature(bare)))
        if len(self.nm + call) > 80: call = "(\n    " + call[1:-1].replace(", ", ",\n    ") + ",\n)"
        return self.nm + call

    def parameters(self) -> str:
        "A table made of the comments behind the parameters."
        try: documented = docments(self.sym, full=True)
        except (TypeError, ValueError, OSError): return ""
        rows = [parameter_row(name, entry) for name, entry in documented.items() if name not in ("self", "return")]
        result = documented.get("return")
        if result and result.docment: rows.append(parameter_row("returns", result, mark="*"))
        return table(["", "type", "default", "meaning"], rows) if any(row[-1] for row in rows) else ""

    def methods(self) -> str:
        "A table of a class's public methods that have a docstring."
        if not inspect.isclass(self.sym): return ""
        found = [(name, inspect.unwrap(getattr(self.sym, name))) for name in vars(self.sym) if name[0] != "_"]
        rows = [[f"`.{name}`", inspect.getdoc(f).splitlines()[0]] for name, f in found
                if inspect.isroutine(f) and inspect.getdoc(f)]
        return table(["method", "meaning"], rows)

    def source(self) -> str:
        "A link to the definition in the exported module."
        cfg, sym = get_config(), inspect.unwrap(self.sym)
        try: path, line = Path(inspect.getsourcefile(sym)), inspect.getsourcelines(sym)[1]
        except (TypeError, OSError): return ""
        if cfg.config_path not in path.parents: return ""
        url = f"{cfg.git_url}/blob/{cfg.branch}/{path.relative_to(cfg.config_path).as_posix()}#L{line}"
        return f"[source]({url}){{.source-link}}"


def parameter_row(name: str, entry: dict, mark: str = "`") -> list[str]:
    "Name, type, default and meaning of one parameter."
    default = entry.get("default", MISSING)
    shown = "" if default is MISSING else code(re.sub(r"<\w+ '?([\w.]+)[^>]*>", r"\1", repr(default)))
    return [f"{mark}{name}{mark}", code(type_name(entry["anno"])), shown, " ".join((entry["docment"] or "").split())]


def type_name(annotation) -> str:
    "An annotation without the modules its names come from."
    if annotation in (MISSING, None): return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"(?:\w+\.)+(\w)", r"\1", text)


def code(text: str) -> str: return f"`{text}`" if text else ""


def table(header: list[str], rows: list[list[str]]) -> str:
    "A markdown table without its empty columns."
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line[i].replace("|", "\\|") for i in kept) + " |" for line in lines) if kept else ""
