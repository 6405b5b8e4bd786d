"""The pack's texts in two languages: what the server hands to the page, and the help pages."""

import json
import re
from pathlib import Path

import pytest
from td_pack.tests.support import locales

LANGUAGES = ("en", "zh")
NODES = locales.node_definitions()
DOCS = Path(__file__).resolve().parents[2] / "nodes" / "web" / "docs"
# Help pages as the page asks for them: TYPE/LANGUAGE.md, else TYPE.md, which are English.
PAGES = {"en": "{}.md", "zh": "{}/zh.md"}


def keys(texts: dict, path: str = "") -> set[str]:
    found = set()
    for key, value in texts.items():
        found |= keys(value, f"{path}.{key}") if isinstance(value, dict) else {f"{path}.{key}"}
    return found


def leaves(texts: dict) -> list[str]:
    return [text for value in texts.values() for text in (leaves(value) if isinstance(value, dict) else [value])]


def test_the_english_texts_are_those_of_the_schemas():
    assert locales.read("en") == NODES, "python dev.py locales writes them"


def test_every_language_has_every_text():
    assert {language: keys(locales.read(language)) ^ keys(NODES) for language in LANGUAGES} == {
        "en": set(),
        "zh": set(),
    }


def test_what_is_translated_is_translated():
    same = {text for text in leaves(locales.read("zh")) if not re.search("[\u4e00-\u9fff]", text)}
    assert same <= {"TurboDiffusion LoRA", "TurboDiffusion Sigmas", "Latent", "VAE", "sigmas", "topk", "sla_topk"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_means_something_else_to_the_pages_formatter(language):
    """vue-i18n reads {name} as a value, @ as a link to another message and | as a plural."""
    assert [text for text in leaves(locales.read(language)) if set(text) & set("{}@|")] == []


@pytest.mark.server
def test_the_server_offers_every_language(server):
    served = json.loads(server.client.get("/i18n"))
    assert {
        language: served[language]["nodeDefs"].items() >= locales.read(language).items() for language in LANGUAGES
    } == {
        "en": True,
        "zh": True,
    }


@pytest.mark.parametrize("node_id", NODES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_that_names_every_input(node_id, language):
    text = (DOCS / PAGES[language].format(node_id)).read_text(encoding="utf-8")
    title, *_ = text.splitlines()
    assert title == f"# {locales.read(language)[node_id]['display_name']}"
    table = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    named = set(re.findall(r"\w+", table, re.ASCII))
    assert set(NODES[node_id]["inputs"]) - named == set()


@pytest.mark.server
def test_help_pages_are_served_in_both_languages(server):
    for node_id in NODES:
        for page in PAGES.values():
            served = server.client.get(f"/extensions/{server.pack_name}/docs/{page.format(node_id)}")
            assert served == (DOCS / page.format(node_id)).read_bytes()
