"""What a notebook's parameters cell declares, and whether given values fit it.

papermill's own inspection is a regular expression that misses `Literal["a"]`, `None | str` and values holding a second
`=`, it lets unknown names pass with a warning, and it injects names as they come. Here the cell is read with `ast`,
unknown names stop, names must be identifiers, and values are coerced by the declared type (`lr: 1e-4` is a string in
YAML 1.1, and `-p sizes "[1, 2]"` is a string on papermill's command line).
"""

import ast
import difflib
import functools
import io
import json
import keyword
import math
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cilkit.errors import UserError
from cilkit.hiding import secret_in

MARKER = "# parameters"  # the first line of every parameters cell begins so; how a kernel recognises the cell
INJECTED = "# Parameters"  # papermill's first line of the cell that it injects
ANY = {"Any", "object"}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: type = default  # comment`."""

    name: str
    type: str  # the annotation's source; without one, the type of the default
    default: Any
    comment: str


class _Misfit(ValueError):
    """A value does not fit a type; the message says why when there is more to say than the type."""


def parameters_cell(notebook: dict) -> str:
    """Source of the one code cell tagged `parameters` of an nbformat notebook (dict or NotebookNode)."""
    tagged = [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and "parameters" in cell.get("metadata", {}).get("tags", [])
    ]
    if len(tagged) != 1:
        raise UserError(f"the notebook has {len(tagged)} code cells tagged `parameters`; expected exactly one: tag it.")
    source = tagged[0]["source"]
    return source if isinstance(source, str) else "".join(source)


def declared(notebook: Path | str | dict) -> dict[str, Parameter]:
    """The parameters that a notebook (a path, or its loaded content) declares, in their order."""
    if isinstance(notebook, dict):
        return declared_in(parameters_cell(notebook))
    path = Path(notebook)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return declared_in(parameters_cell(content))
    except FileNotFoundError:
        raise UserError(f"there is no notebook {path}{nearest_file(path)}") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise UserError(f"{path} is not a notebook (nbformat JSON with cells): restore it from git.") from None
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None


def declared_in(source: str) -> dict[str, Parameter]:
    """The parameters that a parameters cell's source declares; imports and comments in it are passed over."""
    return dict(_declared_in(source))


@functools.lru_cache(maxsize=64)  # a sweep asks for the same few notebooks again and again
def _declared_in(source: str) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    comments = _comments(source)
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        line = functools.partial(ast.get_source_segment, source, statement)
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, annotation = statement.target, ast.unparse(statement.annotation)
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, annotation = statement.targets[0], None
        else:
            raise UserError(f"parameters cell: `{line()}` is not one `name: type = value`; move it to another cell.")
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            default = None
            target = None
        if not isinstance(target, ast.Name):
            raise UserError(f"parameters cell: `{line()}` needs one name and a plain value (number, string, list …).")
        if annotation is None:
            annotation = "Any" if default is None else type(default).__name__
        lines = range(statement.lineno, statement.end_lineno + 1)
        comment = " ".join(comments[number] for number in lines if number in comments)
        found[target.id] = Parameter(target.id, annotation, default, comment)
    return found


def check(
    parameters: dict[str, Parameter], given: dict[str, Any], environment: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Fit `given` values to the declared `parameters`: (values, one note for each value that was coerced).

    Raises UserError for a name that is no identifier, an unknown name (with the nearest known one), a value that the
    declared type cannot hold, or one that holds a secret of `environment` (default: this process'): papermill writes
    parameters into the notebook. Values are plain Python afterwards (numpy scalars, paths, tuples and sets converted:
    papermill would inject them as strings).
    """
    texts = {name: str(plain(value)) for name, value in given.items()}
    suspected = secret_in("\n".join(texts.values()), environment)  # one look, which a sweep takes a thousand times
    for name, text in texts.items() if suspected else ():
        if secret := secret_in(text, environment):
            raise UserError(
                f"parameter {name} holds the value of the environment's {secret}, which would be written into the "
                "notebook: let the notebook read it from the environment. Nothing was run."
            )
    values, notes = {}, []
    for name, value in given.items():
        if not (isinstance(name, str) and name.isidentifier()) or keyword.iskeyword(name):
            raise UserError(f"parameter name {name!r} is not a Python identifier: it is refused, nothing was run.")
        if name not in parameters:
            raise UserError(f"unknown parameter {name!r}{_nearest(name, list(parameters))}")
        parameter = parameters[name]
        plain_value = plain(value)
        try:
            fitted = _fit(plain_value, ast.parse(parameter.type, mode="eval").body)
        except _Misfit as misfit:
            reason = f" ({misfit})" if str(misfit) else ""
            raise UserError(f"parameter {name} = {value!r}: expected {parameter.type}{reason}.") from None
        if _reread(plain_value, fitted):
            notes.append(f"{name}: {plain_value!r} was read as {fitted!r}, as declared ({parameter.type}).")
        values[name] = fitted
    return values, notes


def plain(value: Any) -> Any:
    """`value` as plain Python data that papermill and JSON keep: scalars, strings, lists and dicts."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # numpy scalar or array
        return value.tolist()
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def load_params(path: Path | str) -> dict[str, Any]:
    """A parameter file: a YAML mapping from declared names to plain values (safe loading, no name twice)."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"there is no parameter file {path}{nearest_file(path)}") from None
    try:
        loaded = yaml.load(text, _NoDoubles)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not readable as YAML ({getattr(error, 'problem', error)}).") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected `name: value` lines, found a {type(loaded).__name__}.")
    return loaded


def parse_text(text: str) -> Any:
    """A value typed on a command line: what YAML reads in it, else the text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def nearest_file(path: Path) -> str:
    """The end of a sentence that begins "there is no file …": what is there under a similar name."""
    if not path.parent.is_dir():
        return f": the folder {path.parent} does not exist."
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix == path.suffix)
    return _nearest(path.name, names)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f": did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(known) or 'none'}."


def _reread(before: Any, after: Any) -> bool:
    """Whether fitting changed what a value is (1 as 1.0 does not count)."""
    if isinstance(before, list) and isinstance(after, list):
        return any(_reread(b, a) for b, a in zip(before, after, strict=True))
    if isinstance(before, dict) and isinstance(after, dict):
        return any(_reread(b, a) for b, a in zip(before.values(), after.values(), strict=True))
    return type(before) is not type(after) and not (type(before) is int and type(after) is float)


class _NoDoubles(yaml.SafeLoader):
    """Safe YAML that refuses a name given twice (PyYAML silently keeps the last)."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _comments(source: str) -> dict[int, str]:
    """Line number -> the comment at its end, without the hash."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def _fit(value: Any, annotation: ast.expr) -> Any:
    """`value` as the type that an annotation's syntax tree describes; raises _Misfit."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _fit_one_of(value, _alternatives(annotation))
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value).rpartition(".")[2]
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if outer == "Literal":
            return _fit_literal(value, [ast.literal_eval(item) for item in inner])
        if outer == "Optional":
            return _fit_one_of(value, [*inner, ast.Constant(None)])
        if outer == "list":
            return [_fit(item, inner[0]) for item in _fit_name(value, "list")]
        if outer == "dict":
            return {_fit(k, inner[0]): _fit(v, inner[1]) for k, v in _fit_name(value, "dict").items()}
        return _fit_name(value, outer)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):  # a quoted annotation
        return _fit(value, ast.parse(annotation.value, mode="eval").body)
    return _fit_name(value, ast.unparse(annotation))


def _alternatives(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _alternatives(annotation.left) + _alternatives(annotation.right)
    return [annotation]


def _fit_one_of(value: Any, kinds: list[ast.expr]) -> Any:
    """The first kind that holds `value` unchanged in type; else the first that can be read from it. The text "None",
    which is a text in YAML, is None where that is among them."""
    if value == "None" and any(ast.unparse(kind) == "None" for kind in kinds):
        return None
    fits = []
    for kind in kinds:
        try:
            fits.append(_fit(value, kind))
        except _Misfit:
            continue
    if not fits:
        raise _Misfit
    return next((fit for fit in fits if type(fit) is type(value)), fits[0])


def _fit_literal(value: Any, choices: list) -> Any:
    for choice in choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    raise _Misfit(f"did you mean {close[0]!r}?" if close else "")


def _fit_name(value: Any, kind: str) -> Any:
    if kind in ANY:
        return value
    if kind == "None":
        if value is None or value in ("None", "null"):
            return None
        raise _Misfit
    readers = {"float": _to_float, "int": _to_int, "bool": _to_bool, "str": _to_str, "list": _to_list, "dict": _to_dict}
    if kind not in readers:
        raise _Misfit(f"a parameters cell may declare {', '.join(readers)}, None, Literal[…] and unions with |")
    return readers[kind](value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Misfit
    try:
        number = float(value)
    except ValueError:
        raise _Misfit from None
    if math.isnan(number):
        raise _Misfit("not a number")
    return number


def _to_int(value: Any) -> int:
    if type(value) is int:
        return value
    number = _to_float(value)
    if not number.is_integer():
        raise _Misfit
    return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdigit() else int(number)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise _Misfit("write true or false")


def _to_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        raise _Misfit("YAML reads yes, no, on, off as true or false: put the word in quotes")
    if isinstance(value, int | float):
        return str(value)
    raise _Misfit


def _to_list(value: Any) -> list:
    value = parse_text(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise _Misfit
    return value


def _to_dict(value: Any) -> dict:
    value = parse_text(value) if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise _Misfit
    return value
