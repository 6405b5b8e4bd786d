"""The kernel files obey the rules that neither the interpreter nor the compiler checks."""

import ast
import importlib
import inspect
from types import ModuleType

import pytest
from td_pack.kernels.backends import BACKENDS, REFERENCE
from td_pack.kernels.dispatch import Operator
from td_pack.tests.support.aot import KernelCase
from td_pack.tests.support.kernels import ROOT, TRITON_FILES, aot_cases, module_name

FOLDERS = sorted(path.parent.name for path in ROOT.glob("kernels/*/custom_ops.py"))
BANNED = {"make_block_ptr", "libdevice", "autotune"}


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def kernels(tree: ast.Module) -> dict[str, tuple[ast.FunctionDef, list[str]]]:
    """The functions launched on a grid (helpers have no program id), with what they do not specialize on."""
    found = {}
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        if any(dotted(call.func) == "tl.program_id" for call in calls(function)):
            decorator = function.decorator_list[-1]
            keywords = {word.arg: word.value for word in getattr(decorator, "keywords", ())}
            runtime = keywords.get("do_not_specialize")
            found[function.name] = function, ast.literal_eval(runtime) if runtime else []
    return found


def file_faults(text: str) -> list[str]:
    tree, faults = ast.parse(text), []
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in BANNED or name.startswith("atomic_"):
            faults.append(f"line {node.lineno}: {name}")
    for call in calls(tree):
        words = {word.arg for word in call.keywords}
        if dotted(call.func) == "tl.load" and "mask" in words and "other" not in words:
            faults.append(f"line {call.lineno}: masked load without other")
        if isinstance(call.func, ast.Subscript) and dotted(call.func.value) in kernels(tree):
            faults.append(f"line {call.lineno}: not started by launch")
        if dotted(call.func) == "launch" and "enable_fp_fusion" not in words:
            faults.append(f"line {call.lineno}: launch without enable_fp_fusion")
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        arguments = [*function.args.args, *function.args.kwonlyargs]
        jitted = any(ast.unparse(each).startswith("triton.jit") for each in function.decorator_list)
        if not jitted and not (function.returns and all(each.annotation for each in arguments)):
            faults.append(f"{function.name}: not typed")  # mypy does not ask it of these files
    for name, (function, _) in kernels(tree).items():
        if "tl.int64" not in ast.unparse(function):
            faults.append(f"{name}: no 64-bit offsets")
    return faults


def case_faults(text: str, cases: list[KernelCase]) -> list[str]:
    """Kernels without a case, and lengths (upper case, not constexpr) that would recompile with each resolution."""
    faults = []
    for name, (function, runtime) in kernels(ast.parse(text)).items():
        own = [case for case in cases if case.function == name]
        if not own:
            faults.append(f"{name}: no ahead-of-time case")
        for argument in function.args.args:
            is_length = argument.arg.isupper() and argument.annotation is None
            fixed = own and all(argument.arg in case.divisible for case in own)
            if is_length and argument.arg not in runtime and not fixed:
                faults.append(f"{name}: specialized on {argument.arg}")
    return faults


@pytest.mark.parametrize("path", TRITON_FILES, ids=module_name)
def test_kernel_file(path):
    text = path.read_text(encoding="utf-8")
    cases = [case for case in aot_cases() if case.module == module_name(path)]
    assert not [*file_faults(text), *case_faults(text, cases)]


def public_functions(module: ModuleType) -> dict:
    """What a backend's module offers to `dispatch`, by name."""
    found = inspect.getmembers(module, inspect.isfunction)
    return {
        name: function
        for name, function in found
        # torch.compile puts functions without a module, `__...`, into the modules that it has traced
        if name[0] != "_" and name != "unavailable" and function.__module__.startswith(module.__name__)
    }


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_backend_has_functions_of_the_definitions_names_and_signatures(backend, folder):
    if not backend.implements(folder):
        return
    if backend.name == "comfy_kitchen":
        pytest.importorskip("comfy_kitchen", reason="comfy_kitchen comes with ComfyUI")
    definitions = public_functions(REFERENCE.load(folder))
    offered = public_functions(backend.load(folder))
    assert offered
    for name, function in offered.items():
        assert inspect.signature(function) == inspect.signature(definitions[name]), name


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_operator_has_its_files_and_cases(folder):
    """What `dispatch` and the self-test look for, and every operator of the folder in a definition."""
    entry = importlib.import_module(f"td_pack.kernels.{folder}.custom_ops")
    cases = importlib.import_module(f"td_pack.kernels.{folder}.self_test_cases")
    found = {id(operator): operator for operator in vars(entry).values() if isinstance(operator, Operator)}
    assert found
    for operator in found.values():
        assert operator.folder == folder
        assert hasattr(REFERENCE.load(folder), operator.function)
        assert callable(getattr(cases, operator.self_test or folder))
