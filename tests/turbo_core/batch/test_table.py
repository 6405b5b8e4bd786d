"""Tables: what is read from CSV and JSONL, what is refused and at which row, and what multiplies rows."""

import pytest
from td_pack.turbo_core.batch import table
from td_pack.turbo_core.batch.table import Row
from td_pack.turbo_core.errors import TurboError


def read(tmp_path, name: str, content: str | bytes):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return table.read_table(path)


def test_csv_rows_are_numbered_as_in_a_spreadsheet_and_empty_cells_set_nothing(tmp_path):
    text = 'prompt,seed\n"two\nlines, one comma",1\n\n,3\nplain,\n'
    assert read(tmp_path, "a.csv", text) == (
        [Row(2, {"prompt": "two\nlines, one comma", "seed": "1"}), Row(4, {"seed": "3"}), Row(5, {"prompt": "plain"})],
        [],
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiters_of_spreadsheets_and_their_byte_order_mark_are_read(tmp_path, delimiter):
    text = f"\ufeffprompt{delimiter}seed\r\na fox{delimiter}7\r\n"
    assert read(tmp_path, "a.csv", text) == ([Row(2, {"prompt": "a fox", "seed": "7"})], [])


@pytest.mark.parametrize(
    "text,number",
    [
        ("prompt,seed,,\na fox,7,,\n", 2),  # as a spreadsheet saves columns that were cleared
        ("\n,,\nprompt,seed\na fox,7\n", 4),
        ('"prompt";"seed"\na fox;7\n', 2),
    ],
    ids=["columns without a name", "empty rows first", "quoted names"],
)
def test_a_header_is_found_as_a_spreadsheet_leaves_it(tmp_path, text, number):
    assert read(tmp_path, "a.csv", text) == ([Row(number, {"prompt": "a fox", "seed": "7"})], [])


def test_a_comma_in_a_quoted_name_is_no_delimiter(tmp_path):
    assert read(tmp_path, "a.csv", '"Text, long.text";seed\na;7\n')[0] == [
        Row(2, {"Text, long.text": "a", "seed": "7"})
    ]


def test_an_empty_list_is_a_fault_and_no_row_that_vanishes(tmp_path):
    rows, faults = read(tmp_path, "a.jsonl", '{"seed": []}\n{"seed": 1}\n')
    assert rows == [Row(2, {"seed": 1})]
    assert faults == [(1, "its list of 'seed' is empty; give values, or leave the name out")]


def test_a_row_with_too_many_cells_is_a_fault_and_the_others_stay(tmp_path):
    rows, faults = read(tmp_path, "a.csv", "prompt,seed\na, b, 3\nc,4\n")
    assert [row.number for row in rows] == [3]
    assert faults == [(2, "it has more cells than the header; quote cells that hold a comma")]


def test_jsonl_faults_have_their_lines(tmp_path):
    text = '{"seed": 1}\n\n{"seed": 1,}\n[1]\n{"seed": 1, "seed": 2}\n{"prompt": null, "seed": [1, 2]}\n'
    rows, faults = read(tmp_path, "a.jsonl", text)
    assert rows == [Row(1, {"seed": 1}), Row(6, {"seed": [1, 2]})]
    assert [number for number, _ in faults] == [3, 4, 5]


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


def test_choices_nested_beyond_all_sense_are_refused():
    with pytest.raises(TurboError, match="The list of seed is not JSON"):
        table.parse_choices("seed=" + "[" * 60000)


@pytest.mark.parametrize("text", ["", "3-1", "a", "1-", "-4", "1-99999999999"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(TurboError, match="--seeds"):
        table.parse_seeds(text)
