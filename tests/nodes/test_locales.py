"""The texts of the nodes and their help pages, in every language."""

import json
import re

import pytest
from td_pack.tests.support import locales
from td_pack.tests.support.server import ROOT

ENGLISH = locales.english()
TEXTS = {"en": ENGLISH} | {language: locales.read(language) for language in locales.TRANSLATIONS}
DOCS = ROOT / "nodes" / "web" / "docs"
# Help pages as ComfyUI's page asks for them: TYPE/LANGUAGE.md, else TYPE.md, which are English.
PAGES = {"en": "{}.md"} | {language: f"{{}}/{language}.md" for language in locales.TRANSLATIONS}
VALUES = {"en": "| input | example | when to change it |", "zh": "| 输入 | 示例 | 何时更改 |"}
SAME = {"TurboDiffusion LoRA", "TurboDiffusion Sigmas", "sigmas", "topk", "sla_topk"}


def leaves(texts: dict) -> list[str]:
    return [text for value in texts.values() for text in (leaves(value) if isinstance(value, dict) else [value])]


@pytest.mark.parametrize("language", locales.TRANSLATIONS)
def test_a_language_has_a_translation_of_every_text(language):
    texts = TEXTS[language]
    fitted = locales.fitted(texts, ENGLISH)
    assert texts == fitted, "python dev.py locales adds the missing texts in English"
    pairs = zip(leaves(fitted), leaves(ENGLISH), strict=True)
    assert {text for text, original in pairs if text == original} <= SAME, f"locales/{language}: not translated"
    # vue-i18n reads {name} as a value, @ as a link to another message and | as a plural.
    assert [text for text in leaves(texts) if set(text) & set("{}@|")] == []


def test_english_names_are_those_of_inputs_that_there_are():
    for node_id, texts in locales.read("en").items():
        assert texts.keys() == {"inputs"} and texts["inputs"].keys() <= ENGLISH[node_id]["inputs"].keys()


@pytest.mark.parametrize("node_id", ENGLISH)
@pytest.mark.parametrize("language", PAGES)
def test_a_help_page_names_every_input_and_has_a_picture_and_an_example_of_each(node_id, language):
    path = DOCS / PAGES[language].format(node_id)
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# {TEXTS[language][node_id]['display_name']}"
    table = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    assert set(ENGLISH[node_id]["inputs"]) - set(re.findall(r"\w+", table, re.ASCII)) == set()
    if "Legacy" in node_id:
        return  # in old workflows only
    (picture,) = re.findall(r"!\[[^]]+\]\(([\w./-]+)\)", text)
    assert (DOCS / picture).is_file()  # the page resolves it beside the English pages
    tables = re.findall(r"((?:^\|.*\n)+)", text, re.M)
    (values,) = (rows.splitlines()[2:] for rows in tables if rows.startswith(VALUES[language]))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in values]
    names = [re.sub(r".*（(\w+)）", r"\1", name) for name, _, _ in cells]
    assert names == list(ENGLISH[node_id]["inputs"]) and all(example and when for _, example, when in cells)
    if language != "en":  # with the labels that the page shows
        labels = {name: part["name"] for name, part in TEXTS[language][node_id]["inputs"].items()}
        assert [name for name, _, _ in cells] == [f"{label}（{name}）" for name, label in labels.items()]


@pytest.mark.parametrize("language", PAGES)
def test_the_help_of_text_encode_has_ten_prompts_to_copy(language):
    path = DOCS / PAGES[language].format("TurboDiffusionTextEncode")
    prompts = re.findall(r"^> (.+)$", path.read_text(encoding="utf-8"), re.M)
    assert len(prompts) == 10 and all(80 <= len(prompt.split()) <= 150 for prompt in prompts)


@pytest.mark.server
def test_the_server_offers_the_texts_and_the_help_pages(server):
    served = json.loads(server.client.get("/i18n"))
    for language in locales.TRANSLATIONS:
        assert served[language]["nodeDefs"].items() >= TEXTS[language].items()
    for node_id in ENGLISH:
        for page in PAGES.values():
            offered = server.client.get(f"/extensions/{server.pack_name}/docs/{page.format(node_id)}")
            assert offered == (DOCS / page.format(node_id)).read_bytes()
    picture = "TurboDiffusionSample/node.webp"  # the page looks for it here
    assert server.client.get(f"/extensions/{server.pack_name}/docs/{picture}") == (DOCS / picture).read_bytes()
