"""What the pack's sources use of ComfyUI: names and calls, attributes, overridden methods, nodes of graphs."""

import ast
import collections
import concurrent.futures
import contextlib
import dataclasses
import fractions
import hashlib
import importlib
import inspect
import io
import json
import logging
import os
import re
import sys
import textwrap
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("comfy", "comfy_api", "comfy_aimdo", "comfy_execution", "comfy_extras", "comfy_kitchen", "comfyui_version")
MODULES += ("server", "folder_paths", "nodes", "execution", "node_helpers", "latent_preview", "app")
PACK = sys.modules["td_pack"].__name__
# An attribute of one of these says nothing about ComfyUI.
_PLAIN = (
    torch.Tensor,
    torch.nn.Module,
    torch.nn.Linear,
    torch.Generator,
    torch.Size,
    torch.dtype,
    torch.device,
    np.ndarray,
)
_PLAIN += (dict, list, str, tuple, set, int, float, bytes, type, Path, fractions.Fraction, collections.Counter)
_PLAIN += (types.FunctionType, types.CodeType, os.stat_result, logging.Logger, re.Pattern, OSError)
_PLAIN += (concurrent.futures.Future, concurrent.futures.ThreadPoolExecutor)


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """The product's files below the folders of the pack, parsed."""
    for folder in folders or ("nodes", "turbo_core", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


class Use(NamedTuple):
    """A name of ComfyUI in the sources; `call` where it is called with arguments that can be read off."""

    name: str
    where: str
    call: ast.Call | None


def _bound(tree: ast.Module) -> dict[str, str]:
    """Local name: the name of ComfyUI that an import binds it to."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                if top in MODULES:
                    bound[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in MODULES:
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return bound


def uses() -> list[Use]:
    found = []
    for path, tree in sources():
        bound = _bound(tree)
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name) or node.id not in bound:
                continue
            name, place = bound[node.id], f"{path.as_posix()}:{node.lineno}"
            while isinstance(parents.get(node), ast.Attribute):
                node = parents[node]
                name += f".{node.attr}"
            call = parents.get(node)
            found.append(Use(name, place, call if isinstance(call, ast.Call) and call.func is node else None))
    return found


def attributes() -> dict[str, str]:
    """Attribute: a place where the host-facing code reads it, of those that neither the pack nor plain classes have."""
    own = {name for plain in _PLAIN for name in dir(plain)}
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            if isinstance(node, ast.ClassDef):
                targets = [t for part in node.body for t in getattr(part, "targets", [getattr(part, "target", None)])]
                own |= {target.id for target in targets if isinstance(target, ast.Name)}
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                own.add(node.attr)
    found = {}
    for path, tree in sources("nodes", "turbo_core/host"):
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        imported = {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _root(node) not in imported:
                found.setdefault(node.attr, f"{path.as_posix()}:{node.lineno}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                name = ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else None
                found.setdefault(name, f"{path.as_posix()}:{node.lineno}")
    return {name: place for name, place in found.items() if name is not None and name not in own}


def _root(node: ast.Attribute) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def resolve(name: str):
    """The object of a dotted name; a function call in it, `f()`, is made. Raises ImportError or AttributeError."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part.removesuffix("()"))
            found = found() if part.endswith("()") else found
        return found
    raise ImportError(name)


def source_of(cls: type) -> str:
    """The source of a class and its bases, of those that have one."""
    text = ""
    for base in cls.__mro__:
        with contextlib.suppress(TypeError, OSError):  # built in, or written in C
            text += inspect.getsource(base)
    return text


def of_host(item) -> bool:
    return item.__module__.split(".")[0] in MODULES


def name_of(function) -> str:
    """module.qualname, the place of a local class written as a call: `make.<locals>.C` is `make().C`."""
    qualname = function.__qualname__.replace(".<locals>.", "().")
    name = f"{function.__module__}.{qualname}"
    # A class of mixed_precision_ops is in the class that it returns.
    return name.replace("mixed_precision_ops().MixedPrecisionOps", "mixed_precision_ops()")


def subclasses() -> list[type]:
    """The pack's classes with a base of ComfyUI's, those that functions make included."""
    from td_pack.turbo_core.host import nf4, quant

    for path, _ in sources("nodes", "turbo_core/host"):
        importlib.import_module(".".join((PACK, *path.with_suffix("").parts)).removesuffix(".__init__"))
    made = (quant.block_int8_operations(torch.float32), nf4.nf4_operations(torch.float32))
    modules = [
        module for name, module in list(sys.modules.items()) if name.startswith(f"{PACK}.") and ".tests" not in name
    ]
    found = [base for made_class in made for base in made_class.Linear.__mro__]
    for module in modules:
        found += [item for item in vars(module).values() if inspect.isclass(item)]
    found += [inner for outer in list(found) for inner in vars(outer).values() if inspect.isclass(inner)]
    ours = {item for item in found if item.__module__.startswith(PACK)}
    return sorted((item for item in ours if any(map(of_host, item.__mro__))), key=lambda item: item.__qualname__)


def form(function) -> str:
    """The parameters of a function as `a, b=, *args, **kwargs`: names, and which have a default."""
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parts = []
    for each in inspect.signature(function).parameters.values():
        if each.kind == each.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        parts.append(marks.get(each.kind, "") + each.name + ("" if each.default is each.empty else "="))
    return ", ".join(parts)


def digest(function) -> str:
    """Of a function's tokens, on every Python alike; neither docstrings, comments nor line breaks count."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    kept, previous = [], tokenize.NEWLINE
    for kind, text, *_ in tokenize.generate_tokens(io.StringIO(source).readline):
        if kind in (tokenize.COMMENT, tokenize.NL):
            continue
        docstring = kind == tokenize.STRING and previous in (tokenize.NEWLINE, tokenize.INDENT)
        kept.append("" if docstring else {tokenize.INDENT: ">", tokenize.DEDENT: "<"}.get(kind, text.strip()))
        previous = kind
    return hashlib.sha256("".join(kept).encode()).hexdigest()[:12]


def misfit(theirs, ours, by_name: bool = False) -> str:
    """Why `ours` does not take every call that `theirs` takes; empty if it does. `by_name`: what has a default is
    passed by name."""
    host = list(inspect.signature(theirs).parameters.values())
    mine = inspect.signature(ours).parameters
    kinds = {each.kind for each in mine.values()}
    positional = [each for each in mine.values() if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    for i, each in enumerate(host):
        if each.kind == each.VAR_POSITIONAL:
            continue
        if each.kind == each.VAR_KEYWORD:
            fits = each.VAR_KEYWORD in kinds
        elif each.kind == each.POSITIONAL_OR_KEYWORD and i >= len(positional) and each.VAR_POSITIONAL not in kinds:
            fits = by_name and each.default is not each.empty and each.VAR_KEYWORD in kinds
        else:  # what has a default is passed by its name too
            fits = each.default is each.empty or each.name in mine or each.VAR_KEYWORD in kinds
        if not fits:
            return f"{each.name} is not taken"
    required = [each for each in positional[len(host) :] if each.default is each.empty]
    return f"{required[0].name} is required" if required and each.kind != each.VAR_POSITIONAL else ""


def overridden(cls: type, interfaces: tuple[str, ...]) -> Iterator[tuple[str, object, object]]:
    """(ComfyUI's name, ComfyUI's method, ours) for each method that the class replaces."""
    for method, ours in vars(cls).items():
        if dataclasses.is_dataclass(cls) and method.startswith("__"):
            continue
        base = next((base for base in cls.__mro__[1:] if method in vars(base)), None)
        if base is None or not of_host(base) or not callable(getattr(cls, method)) or inspect.isclass(ours):
            continue
        theirs = getattr(base, method)
        if any(f"{base.__module__}.{base.__qualname__}".startswith(interface) for interface in interfaces):
            continue
        if inspect.isfunction(getattr(theirs, "__func__", theirs)):
            yield f"{name_of(base)}.{method}", theirs, getattr(cls, method)


def graph_inputs() -> dict[str, set[str]]:
    """Core node: the inputs that the shipped workflows and expansions give it. (Blueprints and the files of the editor
    hold parts of the same graphs.)"""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "workflows" / "api").glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8")).values():
            found.setdefault(node["class_type"], set()).update(node["inputs"])
    for _, tree in sources("nodes"):
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "node" and call.args:
                names = {word.arg for word in call.keywords if word.arg is not None}
                found.setdefault(ast.literal_eval(call.args[0]), set()).update(names)
    from td_pack.nodes.replacements import OLD

    for old in OLD:
        names = {item if isinstance(item, str) else item[0] for item in old.inputs} | set(old.fixed)
        found.setdefault(old.new, set()).update(names)
    return {node: names for node, names in found.items() if not node.startswith("TurboDiffusion")}


def node_inputs(specs: dict) -> set[str]:
    """Names of all inputs in a node's INPUT_TYPES, those of a dynamic combo's options as `format.codec`."""
    names = set()
    for section in ("required", "optional", "hidden"):
        for name, spec in (specs.get(section) or {}).items():
            names.add(name)
            options = spec[1] if isinstance(spec, tuple | list) and len(spec) > 1 else {}
            for option in options.get("options", ()) if isinstance(options, dict) else ():
                if isinstance(option, dict):
                    names |= {f"{name}.{inner}" for inner in node_inputs(option["inputs"])}
    return names
