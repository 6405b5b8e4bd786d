"""Tables: what is read from CSV and JSONL, what is refused and at which row, and what multiplies rows."""

import pytest
from td_pack.turbo_core.batch import table
from td_pack.turbo_core.batch.table import Row
from td_pack.turbo_core.errors import TurboError


def read(tmp_path, name: str, content: str | bytes):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return table.read_table(path)


FOX = {"prompt": "a fox", "seed": "7"}


@pytest.mark.parametrize(
    "text, rows",
    [
        (
            'prompt,seed\n"two\nlines, one comma",1\n\n,3\nplain,\n',
            [
                Row(2, {"prompt": "two\nlines, one comma", "seed": "1"}),
                Row(4, {"seed": "3"}),
                Row(5, {"prompt": "plain"}),
            ],
        ),
        *((f"\ufeffprompt{mark}seed\r\na fox{mark}7\r\n", [Row(2, FOX)]) for mark in ",;\t"),
        ("prompt,seed,,\na fox,7,,\n", [Row(2, FOX)]),  # as a spreadsheet saves columns that were cleared
        ("\n,,\nprompt,seed\na fox,7\n", [Row(4, FOX)]),
        ('"prompt";"seed"\na fox;7\n', [Row(2, FOX)]),
        ('"Text, long.text";seed\na;7\n', [Row(2, {"Text, long.text": "a", "seed": "7"})]),
    ],
)
def test_csv_is_read_as_spreadsheets_write_and_number_it_and_empty_cells_set_nothing(tmp_path, text, rows):
    assert read(tmp_path, "a.csv", text) == (rows, [])


def test_a_row_with_too_many_cells_is_a_fault_and_the_others_stay(tmp_path):
    rows, faults = read(tmp_path, "a.csv", "prompt,seed\na, b, 3\nc,4\n")
    assert [row.number for row in rows] == [3]
    assert faults == [(2, "it has more cells than the header; quote cells that hold a comma")]


def test_jsonl_faults_have_their_lines_and_an_empty_list_is_one(tmp_path):
    text = '{"seed": 1}\n\n{"seed": 1,}\n[1]\n{"seed": 1, "seed": 2}\n{"prompt": null, "seed": [1, 2]}\n{"seed": []}\n'
    rows, faults = read(tmp_path, "a.jsonl", text)
    assert rows == [Row(1, {"seed": 1}), Row(6, {"seed": [1, 2]})]
    assert [number for number, _ in faults] == [3, 4, 5, 7]
    assert faults[-1][1] == "its list of 'seed' is empty; give values, or leave the name out"


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.csv", "", "no header row"),
        ("a.csv", "seed,seed\n1,2\n", "names the column 'seed' twice"),
        ("a.csv", 'prompt\n"open\n', "is not valid CSV"),
        ("a.csv", b"prompt\n\xff\xfe\n", "not UTF-8"),
        ("a.xlsx", "x", "give a .csv or a .jsonl file"),
    ],
)
def test_what_is_no_table_is_refused_whole(tmp_path, name, content, message):
    with pytest.raises(TurboError, match=message):
        read(tmp_path, name, content)


def test_rows_are_multiplied_by_their_lists_and_by_the_command_line():
    rows = [Row(2, {"prompt": "a", "topk": [0.1, 0.2]}), Row(3, {"prompt": "b"})]
    made = list(table.expand(rows, {"steps": "4", "prompt": "unused"}, {"seed": [1, 2]}))
    assert [(row.number, row.values["prompt"], row.values.get("topk"), row.values["seed"]) for row in made] == [
        (2, "a", 0.1, 1),
        (2, "a", 0.1, 2),
        (2, "a", 0.2, 1),
        (2, "a", 0.2, 2),
        (3, "b", None, 1),
        (3, "b", None, 2),
    ]
    assert all(row.values["steps"] == "4" for row in made)


def test_seeds_and_choices_are_parsed():
    assert table.parse_seeds("1-3, 7,2") == [1, 2, 3, 7]
    assert table.parse_choices("topk=0.1, 0.2") == ("topk", ["0.1", "0.2"])
    assert table.parse_choices('prompt=["a, b", "c"]') == ("prompt", ["a, b", "c"])
    assert table.parse_setting("6.text=a=b") == ("6.text", "a=b")


@pytest.mark.parametrize("text", ["", "3-1", "a", "1-", "-4", "1-99999999999"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(TurboError, match="--seeds"):
        table.parse_seeds(text)
