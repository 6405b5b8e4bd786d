"""The texts of the nodes by language: English in the schemas, others in `locales/LANGUAGE/nodeDefs.json`.

ComfyUI's page shows the schema's text where a language has none, so the file for English holds only names of inputs
that are better than their ids, which are fixed. (A `display_name` in the schema would replace every translation.)"""

import asyncio
import json
from pathlib import Path

LOCALES = Path(__file__).resolve().parents[2] / "locales"
TRANSLATIONS = sorted({path.parent.name for path in LOCALES.glob("*/nodeDefs.json")} - {"en"})


def english() -> dict[str, dict]:
    """Titles, descriptions, names and tooltips of every node, from its schema, in the form of nodeDefs.json."""
    from ...nodes import TurboDiffusionExtension

    schemas = [node.define_schema() for node in asyncio.run(TurboDiffusionExtension().get_node_list())]
    return {schema.node_id: _texts(schema) for schema in schemas}


def _texts(schema) -> dict:
    inputs = {given.id: _part(given.id, given.tooltip) for given in schema.inputs}
    outputs = {str(i): _part(out.display_name, out.tooltip) for i, out in enumerate(schema.outputs)}
    texts = {"display_name": schema.display_name, "description": schema.description, "inputs": inputs}
    return texts | {"outputs": {slot: part for slot, part in outputs.items() if part}}


def _part(name: str | None, tooltip: str | None) -> dict:
    return {key: text for key, text in (("name", name), ("tooltip", tooltip)) if text}


def read(language: str) -> dict[str, dict]:
    """The texts of a translation."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def fitted(texts: dict, source: dict) -> dict:
    """`texts` with the keys of `source`, in its order: missing texts are those of `source`, others are left out."""
    return {
        key: fitted(texts.get(key, {}), value) if isinstance(value, dict) else texts.get(key, value)
        for key, value in source.items()
    }


def main(arguments: list[str]) -> int:
    """`dev.py locales`: fits the files of all translations to the schemas, with the English text where one is
    missing."""
    from .host import load_host

    load_host()
    for language in TRANSLATIONS:
        path = LOCALES / language / "nodeDefs.json"
        texts = fitted(read(language), english())
        path.write_text(json.dumps(texts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        print(f"{path} has a text for every text of the schemas; `git diff` shows those to translate.")
    return 0
