"What a page shows of a public function or class: heading, signature, docstring, parameters, methods, source link."

import inspect
import re
from configparser import ConfigParser
from dataclasses import fields, is_dataclass
from pathlib import Path

from fastcore.docments import docments

ROOT = Path(__file__).resolve().parent.parent
MISSING = inspect.Parameter.empty
OBJECT = re.compile(  # <function f at 0x7f…>, <class 'int'>
    r"<(?:class|function|built-in function) '?(?:[\w.]+\.<locals>\.)*(?:[\w.]*<lambda>|([\w.]+))[^>]*>"
)
INFERRED = {  # types of defaults that say less than a reader wants
    "NoneType": "",
    "builtin_function_or_method": "Callable",
    "function": "Callable",
}


def api_card(
    sym,  # a function or class of the library
    level: int = 3,  # of the heading
) -> str:  # markdown
    "Documentation of `sym`, made of its signature, docstring and the comments behind its parameters."
    parts = [f"```python\n{signature(sym)}\n```", documentation(sym), parameters(sym), methods(sym), source(sym)]
    return f"{'#' * level} {sym.__qualname__}\n\n::::{{container}} api\n" + "\n\n".join(filter(None, parts)) + "\n::::"


def signature(sym) -> str:
    "The call, without types (the table has them), one parameter a line where it is long."
    name = sym.__qualname__
    if inspect.isclass(sym) and "__init__" not in vars(sym):
        return f"class {name}({', '.join(base.__name__ for base in sym.__bases__ if base is not object)})"
    shown = bare_parameters([p for p in given(sym) if p.name != "self" and p.name[0] != "_"])
    call = f"{name}({', '.join(shown)})"
    return call if len(call) <= 80 else f"{name}(\n    " + ",\n    ".join(shown) + ",\n)"


def given(sym) -> list:
    "The parameters of a call, none where Python cannot tell."
    try:
        return list(inspect.signature(sym).parameters.values())
    except (TypeError, ValueError):
        return []


def bare_parameters(given: list) -> list[str]:
    "Parameters with their defaults, and the star before the first that must be named."
    shown = [named(str(p.replace(annotation=MISSING))) for p in given]
    kinds = [p.kind for p in given]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    return shown


def named(text: str) -> str:
    "Functions and classes by their names, those without one as an ellipsis."
    return OBJECT.sub(lambda found: found[1] or "...", text)


def documentation(sym) -> str:
    "The docstring, unless it is the one that a dataclass makes up."
    text = inspect.cleandoc(sym.__doc__ or "")
    return "" if text.startswith(f"{sym.__name__}(") else text


def parameters(sym) -> str:
    "A table made of the comments behind the parameters, and of the fields of the record that a function takes."
    try:
        documented = docments(sym, full=True)
    except (TypeError, ValueError, OSError):
        return ""
    helps = field_helps(sym)
    rows = [
        parameter_row(f"`{name}`", entry, helps.get(name))
        for name, entry in documented.items()
        if name not in ("self", "return") and name[0] != "_"
    ]
    result = documented.get("return")
    if result and result.docment:
        rows.append(parameter_row("*returns*", result))
    return table(["", "type", "default", "meaning"], rows) if any(row[-1] for row in rows) else ""


def field_helps(sym) -> dict[str, str]:
    "What the fields of a record mean: of a dataclass itself, or of the one that a function takes as `**fields`."
    record = getattr(sym, "__record__", sym)
    return {f.name: f.metadata["help"] for f in fields(record) if "help" in f.metadata} if is_dataclass(record) else {}


def methods(sym) -> str:
    "A table of a class's public methods that have a docstring."
    if not inspect.isclass(sym):
        return ""
    found = [(name, getattr(sym, name)) for name in vars(sym) if name[0] != "_"]
    rows = [
        [f"`.{name}`", inspect.getdoc(f).splitlines()[0]] for name, f in found if inspect.isroutine(f) and f.__doc__
    ]
    return table(["method", "meaning"], rows) if rows else ""


def source(sym) -> str:
    "A link to the definition in the exported module."
    sym = inspect.unwrap(sym)
    try:
        path, line = Path(inspect.getsourcefile(sym)), inspect.getsourcelines(sym)[1]
    except (TypeError, OSError):
        return ""
    if ROOT not in path.parents:
        return ""
    return f"[source]({repository_url(ROOT)}/{path.relative_to(ROOT).as_posix()}#L{line}){{.source-link}}"


def repository_url(root: Path) -> str:
    "Where the files of the repository can be read, from settings.ini."
    ini = ConfigParser()
    ini.read(root / "settings.ini", encoding="utf-8")
    return f"{ini['DEFAULT']['git_url']}/blob/{ini['DEFAULT']['branch']}"


def parameter_row(name: str, entry: dict, meaning: str | None = None) -> list[str]:
    "Name, type, default and meaning of one parameter."
    default = entry.get("default", MISSING)
    shown = "" if default is MISSING else code(named(repr(default)))
    return [name, code(type_name(entry["anno"])), shown, " ".join((entry["docment"] or meaning or "").split())]


def type_name(annotation) -> str:
    "An annotation without the modules its names come from."
    if annotation in (MISSING, None):
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    name = re.sub(r"(?:\w+\.)+(\w)", r"\1", text)
    return INFERRED.get(name, name)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def table(header: list[str], rows: list[list[str]]) -> str:
    "A markdown table without its empty columns."
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line[i].replace("|", "\\|") for i in kept) + " |" for line in lines)
