"""The pack's texts in the form that ComfyUI's page takes them in, one file for each language (`locales/LANGUAGE/nodeDefs.json`).

The English file repeats the schemas: `dev.py locales` writes it. The other languages are written by hand and hold the same keys."""

import asyncio
import json
from pathlib import Path

LOCALES = Path(__file__).resolve().parents[2] / "locales"


def schemas() -> list:
    from ...nodes import TurboDiffusionExtension

    return [node.define_schema() for node in asyncio.run(TurboDiffusionExtension().get_node_list())]


def node_definitions() -> dict[str, dict]:
    """Titles, descriptions, names and tooltips of every node, from its schema."""
    return {schema.node_id: _texts(schema) for schema in schemas()}


def _texts(schema) -> dict:
    inputs = {given.id: _part(given.id, given.tooltip) for given in schema.inputs}
    outputs = {str(i): _part(out.display_name, out.tooltip) for i, out in enumerate(schema.outputs)}
    texts = {"display_name": schema.display_name, "description": schema.description, "inputs": inputs}
    return texts | {"outputs": {slot: part for slot, part in outputs.items() if part}}


def _part(name: str | None, tooltip: str | None) -> dict:
    return {key: text for key, text in (("name", name), ("tooltip", tooltip)) if text}


def read(language: str) -> dict[str, dict]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """`dev.py locales`: writes the English file anew."""
    from .host import load_host

    load_host()
    path = LOCALES / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(node_definitions(), indent=2) + "\n", encoding="utf-8")
    print(path)
    return 0
