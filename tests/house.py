"""Counts how a checkout is built: rooms, imports between them, long functions, scattered rules of use, missing tests.

python tests/house.py [--checkout PATH] [--json] [--list MEASURE]

Everything is read from the source text with `ast`, so that any commit can be counted beside any other:

rooms                     folders and modules directly below `retrievo/`, without `__init__` and `__main__`
folders                   all folders that hold modules
arrows                    ordered pairs of rooms of which one imports from the other, wherever the import stands
circles                   groups of files that import one another in a circle, wherever the import stands
long-functions            functions and methods of more than 40 lines, without decorators, with their docstring
any                       uses of the name `Any`, without its imports
scattered-rules           options of a command whose rule of use stands in more than one place: see `scattered_rules`
undocumented              public functions and classes of modules without a docstring
undocumented-methods      public methods and properties of public classes without one, save those that override a method
                          of a class of the package, where it is explained
untested-modules          modules with functions or classes after which no file of tests is named
config-parameters         parameters of functions whose annotation names a whole Config
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST = 40
_DOES_NOT_APPLY = re.compile(r"\b(does|do) not apply\b|\bapplies only\b")
_DECLARED_RULES = ("only", "unless", "applies")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COLLECTIONS = (ast.Tuple, ast.List, ast.Set, ast.Dict)


@dataclass(frozen=True)
class Module:
    """A file of the package: its dotted name below `retrievo`, as parts, and its syntax tree."""

    parts: tuple[str, ...]
    tree: ast.Module

    @property
    def name(self) -> str:
        return ".".join(("retrievo", *self.parts)).removesuffix(".__init__")

    @property
    def room(self) -> str:
        return self.parts[0]

    @functools.cached_property
    def imports(self) -> list[str]:
        """Every name that is imported from this package, wherever the import stands."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found += [f"{node.module}.{alias.name}" for alias in node.names]
        return [name for name in found if name.startswith("retrievo.")]

    @functools.cached_property
    def functions(self) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        """All functions and methods with their dotted names, inner ones among them."""
        return list(_functions(self.tree, self.name))

    @functools.cached_property
    def places(self) -> dict[str, ast.AST]:
        """Functions and tables of names by their dotted names."""
        tables: dict[str, ast.AST] = {
            f"{self.name}.{target.id}": node
            for node in self.tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, (*_COLLECTIONS, ast.Call))
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        return tables | dict(self.functions)

    @functools.cached_property
    def called(self) -> dict[str, list[str]]:
        """The dotted names of functions and tables by their own names, dunders left out."""
        found: dict[str, list[str]] = {}
        for place in self.places:
            if not (own := place.rpartition(".")[2]).startswith("__"):
                found.setdefault(own, []).append(place)
        return found


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        name = f"{prefix}.{child.name}" if isinstance(child, (*_FUNCTIONS, ast.ClassDef)) else prefix
        if isinstance(child, _FUNCTIONS):
            yield name, child
        yield from _functions(child, name)


@functools.cache
def modules_of(checkout: Path) -> list[Module]:
    """All modules of a checkout's package."""
    package = checkout / "retrievo"
    return [
        Module(path.relative_to(package).with_suffix("").parts, ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(package.rglob("*.py"))
    ]


def rooms(modules: list[Module]) -> list[str]:
    """Folders and modules directly below the package."""
    return sorted({module.room for module in modules} - {"__init__", "__main__"})


def folders(modules: list[Module]) -> list[str]:
    """All folders that hold modules, the package itself left out."""
    return sorted({"/".join(module.parts[:-1]) for module in modules} - {""})


def arrows(modules: list[Module]) -> list[str]:
    """Which room imports from which."""
    known = set(rooms(modules))
    pairs = {(module.room, name.split(".")[1]) for module in modules for name in module.imports}
    return [f"{one} -> {other}" for one, other in sorted(pairs) if one != other and {one, other} <= known]


def imported_modules(modules: list[Module]) -> dict[str, set[str]]:
    """The modules of the package that each module imports; a package whose `__init__` is imported stands for it."""
    known = {module.name for module in modules} - {"retrievo"}
    return {
        module.name: {
            target for name in module.imports for target in [name if name in known else name.rpartition(".")[0]]
        }
        & known - {module.name}
        for module in modules
        if module.name in known
    }


def circles(modules: list[Module]) -> list[str]:
    """Groups of modules each of which reaches all others of its group by imports."""
    direct = imported_modules(modules)
    reached = {name: _reached(name, direct) for name in direct}
    groups = {frozenset({other for other in reached[name] if name in reached[other]}) for name in direct}
    return sorted(", ".join(sorted(group)) for group in groups if group)


def _reached(start: str, direct: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = direct[left.pop()] - found
        found |= new
        left += new
    return found


def long_functions(modules: list[Module]) -> list[str]:
    """Functions of more than `LONGEST` lines."""
    lengths = [(name, (node.end_lineno or 0) - node.lineno + 1) for one in modules for name, node in one.functions]
    return [f"{name}: {length} lines" for name, length in lengths if length > LONGEST]


def uses_of_any(modules: list[Module]) -> list[str]:
    """Every place where the name `Any` is used."""
    return [
        f"{module.name}:{node.lineno}"
        for module in modules
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Name) and node.id == "Any") or (isinstance(node, ast.Attribute) and node.attr == "Any")
    ]


def undocumented(modules: list[Module]) -> list[str]:
    """Public functions and classes without a docstring; the forms of an overloaded function have none."""
    return [
        f"{module.name}.{node.name}"
        for module in modules
        for node in module.tree.body
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and not _private(node.name) and not ast.get_docstring(node)
        if "overload" not in map(ast.unparse, node.decorator_list)
    ]


def undocumented_methods(modules: list[Module]) -> list[str]:
    """Public methods of public classes without a docstring, save those that a base class of the package has."""
    classes = classes_of(modules)
    return [
        f"{module.name}.{name}.{node.name}"
        for name, (module, declared) in classes.items()
        if not _private(name)
        for node in declared.body
        if isinstance(node, _FUNCTIONS)
        and not _private(node.name)
        and not ast.get_docstring(node)
        and not any(node.name in _methods(classes[base][1]) for base in _bases(name, classes)[1:])
    ]


def _private(name: str) -> bool:
    return name.startswith("_")


def _methods(declared: ast.ClassDef) -> set[str]:
    return {node.name for node in declared.body if isinstance(node, _FUNCTIONS)}


def classes_of(modules: list[Module]) -> dict[str, tuple[Module, ast.ClassDef]]:
    """The classes of the package by name; of two of one name, the later."""
    return {
        node.name: (module, node) for module in modules for node in module.tree.body if isinstance(node, ast.ClassDef)
    }


def _bases(name: str, classes: dict[str, tuple[Module, ast.ClassDef]]) -> list[str]:
    """A class and all that it inherits from in the package."""
    found = [name]
    for base in classes[name][1].bases:
        known = base.id if isinstance(base, ast.Name) else ""
        found += _bases(known, classes) if known in classes and known != name else []
    return list(dict.fromkeys(found))


def untested_modules(modules: list[Module], checkout: Path) -> list[str]:
    """Modules with functions or classes whose name no file of tests has, in the folder that mirrors theirs.

    `retrievo/x/y.py` belongs to `tests/x/test_y.py`, and a package's `__init__` to `tests/x/test_x.py` or
    `tests/test_x.py`; an underscore at the end (`csv_`) counts for nothing.
    """
    there = {path.relative_to(checkout / "tests").as_posix() for path in (checkout / "tests").rglob("test_*.py")}
    return [module.name for module in modules if _has_code(module) and not _files_of_tests(module) & there]


def _has_code(module: Module) -> bool:
    return any(isinstance(node, (*_FUNCTIONS, ast.ClassDef)) for node in module.tree.body)


def _files_of_tests(module: Module) -> set[str]:
    *folder, stem = module.parts
    if stem == "__init__" and folder:
        return {"/".join([*folder, f"test_{folder[-1]}.py"]), "/".join([*folder[:-1], f"test_{folder[-1]}.py"])}
    return {"/".join([*folder, f"test_{stem.strip('_')}.py"])}


def config_parameters(modules: list[Module]) -> list[str]:
    """Parameters that take a whole Config."""
    return [
        f"{name}({argument.arg})"
        for module in modules
        for name, node in module.functions
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if argument.annotation is not None and re.search(r"\w*Config\b", ast.unparse(argument.annotation))
    ]


# ------------------------------------------------------------------------------- options and their rules of use


def scattered_rules(modules: list[Module]) -> list[str]:
    """Options of a command for which more than one place says beside which others they have a meaning.

    A place is the declaration, where it has `only=`, `unless=` or `applies=`; or a function that decides on use, which
    is a method of the Config or takes it, and is called `check...`, `refuse...` or `record`, or says that something
    does not apply; or a function or table of the same module that such a function names. It names an option by a
    string (the option's name or flag), or, where it raises a UsageError about the option's flag, under a condition
    on another option. What a value may be, such as a range, is no rule of use and is not counted. Nor is what a
    docstring says: it tells of errors and decides nothing, and made all keys of a summary look like options.
    """
    classes = classes_of(modules)
    parents = {base for name in classes for base in _bases(name, classes)[1:]}
    found = []
    for name in classes:
        if not name.endswith("Config") or name in parents:
            continue
        lineage = _bases(name, classes)
        declared = _declared(lineage, classes)
        deciding = [place for module in modules for place in _deciding(module, frozenset(lineage), frozenset(declared))]
        for option, has_rule in declared.items():
            places = ["declaration"] * has_rule + [place for place, names in deciding if option in names]
            if len(places) > 1:
                found.append(f"{name}.{option}: {', '.join(places)}")
    return found


def _declared(lineage: list[str], classes: dict[str, tuple[Module, ast.ClassDef]]) -> dict[str, bool]:
    """Each option of a Config, and whether its declaration has a rule."""
    found: dict[str, bool] = {}
    for name in reversed(lineage):
        for node in classes[name][1].body:
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(node.value, ast.Call)
            ):
                rules = [keyword.arg for keyword in node.value.keywords if keyword.arg in _DECLARED_RULES]
                found[node.target.id] = bool(rules)
    return found


def _deciding(module: Module, lineage: frozenset[str], options: frozenset[str]) -> list[tuple[str, set[str]]]:
    """The places of a module that hold rules of use of a Config, and the options that each names."""
    left = [name for name, node in module.functions if _takes(name, node, lineage) and _decides(name, node)]
    found: dict[str, ast.AST] = {}
    while left:
        name = left.pop()
        if name not in found:
            found[name] = module.places[name]
            left += [place for used in _names_in(found[name]) for place in module.called.get(used, ())]
    named = [(f"{name.removeprefix('retrievo.')}", _named(node, options)) for name, node in found.items()]
    return [(place, names) for place, names in named if names]


def _takes(name: str, function: ast.FunctionDef | ast.AsyncFunctionDef, lineage: frozenset[str]) -> bool:
    """Whether a function is a method of one of some Configs, or has a parameter of that type."""
    annotations = [one.annotation for one in [*function.args.args, *function.args.kwonlyargs] if one.annotation]
    return name.split(".")[-2] in lineage or any(
        word in lineage for annotation in annotations for word in re.findall(r"\w+", ast.unparse(annotation))
    )


def _decides(name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    nodes = [one for statement in body for one in ast.walk(statement)]
    texts = [one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    by_name = re.match(r"_?(check|refuse)|record$", name.rpartition(".")[2])
    return bool(by_name) or any(_DOES_NOT_APPLY.search(text) for text in texts)


def _names_in(node: ast.AST) -> set[str]:
    """The names and the own attributes that are read in a piece of code."""
    names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    return names | {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute) and _is_self(one.value)}


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "config")


def _named(place: ast.AST, options: frozenset[str]) -> set[str]:
    found = set()
    for node in ast.walk(place):
        if isinstance(node, ast.Constant) and node.value in options:
            found.add(node.value)
        elif isinstance(node, ast.Tuple) and node.elts and (flag := _flag(node.elts[0])) in options:
            found.add(flag)
        elif isinstance(node, ast.If):
            read = {one.attr for one in ast.walk(node.test) if isinstance(one, ast.Attribute) and _is_self(one.value)}
            subjects = {flag for one in node.body for flag in _refused(one)}
            found |= {flag for flag in subjects & options if (read & options) - {flag}}
    return found


def _refused(node: ast.AST) -> Iterator[str]:
    """The options that UsageErrors raised in a statement are about, save those that tell of a value: `found ...`."""
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == "UsageError" and one.args:
            told = _text(one.args[1]) if len(one.args) > 1 else ""
            yield "" if told.startswith("found ") else _flag(one.args[0])


def _flag(node: ast.AST) -> str:
    """The name of the option whose flag a literal begins with: `--loss kl` is loss; empty where it is none."""
    flag = re.match(r"--([a-z0-9-]+)", _text(node))
    return flag[1].replace("-", "_") if flag else ""


def _text(node: ast.AST) -> str:
    """What a literal or formatted string begins with."""
    first = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


# ---------------------------------------------------------------------------------------------------------- the script


def measures(checkout: Path) -> dict[str, list[str]]:
    """What is counted in a checkout, by name."""
    modules = modules_of(checkout)
    return {
        "rooms": rooms(modules),
        "folders": folders(modules),
        "arrows": arrows(modules),
        "circles": circles(modules),
        "long-functions": long_functions(modules),
        "any": uses_of_any(modules),
        "scattered-rules": scattered_rules(modules),
        "undocumented": undocumented(modules),
        "undocumented-methods": undocumented_methods(modules),
        "untested-modules": untested_modules(modules, checkout),
        "config-parameters": config_parameters(modules),
    }


def main() -> int:
    """Prints the counts, or what one of them counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("--list", metavar="MEASURE", help="print what is counted, a line each")
    chosen = parser.parse_args()
    found = measures(chosen.checkout)
    if chosen.list:
        print("\n".join(found[chosen.list]))
    elif chosen.json:
        print(json.dumps({name: len(items) for name, items in found.items()}, indent=2))
    else:
        print("\n".join(f"{name:<22}{len(items):>6}" for name, items in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
