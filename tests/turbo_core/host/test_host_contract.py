"""The ComfyUI at hand is as the pack takes it to be: each entry of tests/support/host_contract.py, and that none is
missing."""

import ast
import importlib
import inspect
import sys

import pytest
from td_pack.tests.support import host_contract as contract
from td_pack.tests.support import host_uses
from td_pack.tests.support.host_uses import resolve

USES = host_uses.uses()
CALLS = [use for use in USES if use.call is not None]
OVERRIDDEN = {
    (name, cls.__name__): (theirs, ours)
    for cls in host_uses.subclasses()
    for name, theirs, ours in host_uses.overridden(cls, contract.INTERFACES)
}
GRAPHS = host_uses.graph_inputs()
READ = host_uses.attributes()


def is_public(name: str) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in contract.PUBLIC)


def is_module(name: str) -> bool:
    return any(use.name.startswith(f"{name}.") for use in USES) and inspect.ismodule(resolve(name))


def test_every_name_is_listed():
    used = {use.name for use in USES if not is_public(use.name) and not is_module(use.name)}
    assert used - contract.NAMES.keys() == set(), "add what these rely on to NAMES"


@pytest.mark.parametrize("name", sorted({use.name for use in USES} - contract.AT_RUN_TIME))
def test_a_name_exists(name):
    resolve(name)


@pytest.mark.parametrize("use", CALLS, ids=lambda use: f"{use.name} at {use.where}")
def test_a_call_fits(use):
    function = resolve(use.name)
    if use.name.endswith(".setdefault"):  # of a dictionary, whose methods have no signature
        return
    starred = any(type(each).__name__ == "Starred" for each in use.call.args)
    words = {word.arg: None for word in use.call.keywords if word.arg is not None}
    bind = inspect.signature(function).bind_partial
    try:
        bind(*([] if starred else use.call.args), **words)
    except TypeError as error:
        pytest.fail(
            f"{use.where} calls {use.name} with what it does not take: {error}; it takes {host_uses.form(function)}"
        )


@pytest.mark.parametrize("name, cls", OVERRIDDEN, ids=map(" in ".join, OVERRIDDEN))
def test_an_override_takes_what_comfyui_passes(name, cls):
    theirs, ours = OVERRIDDEN[name, cls]
    if not name.endswith(".__init__") and name not in contract.OWN_SIGNATURE:
        problem = host_uses.misfit(theirs, ours, by_name=name in contract.BY_NAME)
        assert not problem, f"{cls} overrides {name}({host_uses.form(theirs)}) as ({host_uses.form(ours)}): {problem}"
    known = contract.OVERRIDES.get(name, ())
    now = host_uses.form(theirs)
    assert now in ((known,) if isinstance(known, str) else known), f'{name} is new: "{name}": "{now}",'


@pytest.mark.parametrize("name", contract.COPIES)
def test_what_is_followed_is_as_it_was_read(name):
    ours, *known = contract.COPIES[name]
    try:
        now = host_uses.digest(resolve(name))
    except AttributeError:
        now = "absent"
    assert now in known, f"{name} has changed: read it, adapt {ours}, then add {now!r} to its entry"


@pytest.mark.parametrize("name", contract.ATTRIBUTES)
def test_a_class_has_what_is_read_of_it(name):
    cls = resolve(name)
    text = host_uses.source_of(cls)
    missing = [
        attribute
        for attribute in contract.ATTRIBUTES[name].split()
        if not hasattr(cls, attribute) and f"self.{attribute} " not in text and f"{attribute}:" not in text
    ]
    assert not missing, f"{name} has no {', '.join(missing)} any more"


@pytest.mark.parametrize("mark", contract.MARKS)
def test_a_mark_is_set_where_it_was(mark):
    text = inspect.getsource(importlib.import_module(contract.MARKS[mark]))
    assert f".{mark} = " in text or f'"{mark}"' in text, f"{contract.MARKS[mark]} does not set {mark} any more"


def test_every_attribute_is_listed():
    listed = {name for names in contract.ATTRIBUTES.values() for name in names.split()}
    others = contract.MARKS.keys() | contract.ELSEWHERE.keys()
    unknown = {name: place for name, place in READ.items() if name not in listed | others}
    assert unknown == {}, "add these to the class in ATTRIBUTES that has them, or to MARKS or ELSEWHERE"


@pytest.mark.parametrize("node", sorted(GRAPHS))
def test_a_node_of_core_has_the_inputs_that_graphs_give_it(node):
    assert node in contract.NODES, "add the module it is in to NODES"
    module = importlib.import_module(contract.NODES[node])
    cls = getattr(module, "NODE_CLASS_MAPPINGS", {}).get(node) or next(
        each for each in vars(module).values() if inspect.isclass(each) and node_id(each) == node
    )
    missing = GRAPHS[node] - host_uses.node_inputs(cls.INPUT_TYPES())
    assert not missing, f"{node} has no {', '.join(sorted(missing))} any more"


def node_id(cls: type) -> str | None:
    return cls.define_schema().node_id if hasattr(cls, "define_schema") and "define_schema" in vars(cls) else None


def test_no_class_has_the_name_of_one_of_comfyui():
    """A traceback, a log line or a patch that names a class must not leave open whose it is."""
    ours = {node.name for _, tree in host_uses.sources() for node in tree.body if isinstance(node, ast.ClassDef)}
    modules = {base.__module__ for cls in host_uses.subclasses() for base in cls.__mro__ if host_uses.of_host(base)}
    theirs = {name for module in modules for name, _ in inspect.getmembers(sys.modules[module], inspect.isclass)}
    assert "CameraWanModel" in theirs and ours & theirs == set()


def test_nothing_is_listed_that_is_not_used():
    assert contract.NAMES.keys() - {use.name for use in USES} == set()
    assert (contract.OVERRIDES.keys() | contract.OWN_SIGNATURE.keys()) - {name for name, _ in OVERRIDDEN} == set()
    assert {name for names in contract.ATTRIBUTES.values() for name in names.split()} - READ.keys() == set()
    assert contract.NODES.keys() - GRAPHS.keys() == set()
