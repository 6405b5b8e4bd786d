"""Turns a workflow saved by ComfyUI's editor into the prompt its API takes, as the editor's own export does."""

from collections.abc import Iterator

NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC}
# A widget that the editor adds after one with this option: it takes a place in widgets_values and is no input.
COMPANIONS = ("control_after_generate", "image_upload", "video_upload")
# On inputs of these names the editor adds control_after_generate even where the schema does not ask for it.
SEEDS = {"seed", "noise_seed"}


def specs(inputs: dict, order: dict | None = None) -> Iterator[tuple[str, str, dict]]:
    """(name, type, options) of each input; a V1 combo is written as the list of its options instead of a type."""
    for section in ("required", "optional"):
        found = inputs.get(section, {})
        for name in (order or {}).get(section, found):
            kind, *options = found[name]
            yield name, "COMBO" if isinstance(kind, list) else kind, options[0] if options else {}


def _is_widget(kind: str, options: dict) -> bool:
    return kind in WIDGETS and not options.get("forceInput")


def _widget_values(inputs: Iterator[tuple[str, str, dict]], values: Iterator, prefix: str = "") -> Iterator[tuple]:
    """(name, value) of each widget, read off the positional `values`."""
    for name, kind, options in inputs:
        if not _is_widget(kind, options):
            continue
        # A workflow saved before the input existed lacks its value; the editor then takes the default too.
        value = next(values, options.get("default"))
        if kind == DYNAMIC and value is None:
            value = options["options"][0]["key"]
        yield prefix + name, value
        if kind == DYNAMIC:
            # The chosen option's own widgets follow, named `codec.encoding`.
            chosen = next(o["inputs"] for o in options["options"] if o["key"] == value)
            yield from _widget_values(specs(chosen), values, f"{prefix}{name}.")
        elif any(options.get(c) for c in COMPANIONS) or (kind == "INT" and name in SEEDS):
            next(values, None)


def ui_to_api(workflow: dict, object_info: dict) -> dict:
    """The API prompt of a UI workflow, given the server's /object_info.

    Notes and muted nodes are left out, with the links from them; a link from a bypassed node comes from what its first
    input of that type is linked to. Subgraphs and reroutes are refused: our workflows have none.
    """
    passed = {n["id"]: n for n in workflow["nodes"] if n["mode"] == BYPASSED}
    nodes = {
        n["id"]: n for n in workflow["nodes"] if n["type"] not in NOTES and n["mode"] != MUTED and n["id"] not in passed
    }
    for node in nodes.values():
        if node["type"] not in object_info:
            raise ValueError(f"node {node['id']}: the server has no {node['type']}")

    ends = {link[0]: (link[1], link[2], link[5]) for link in workflow["links"]}

    def source(link: int) -> list | None:
        origin, slot, kind = ends[link]
        if origin in passed:
            given = (i["link"] for i in passed[origin]["inputs"] if i["type"] == kind)
            return source(next(given))
        return [str(origin), slot] if origin in nodes else None

    links = {link: found for link in ends if (found := source(link))}
    prompt = {}
    for node in nodes.values():
        info = object_info[node["type"]]
        values = iter(node.get("widgets_values", []))
        inputs = dict(_widget_values(specs(info["input"], info["input_order"]), values))
        if rest := list(values):
            raise ValueError(f"node {node['id']} ({node['type']}): {rest} belong to no widget")
        # A widget's socket may be linked; then the link takes the place of its value.
        inputs |= {i["name"]: links[i["link"]] for i in node["inputs"] if i["link"] in links}
        title = node.get("title") or info["display_name"] or node["type"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt
