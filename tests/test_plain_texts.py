"""Held-out texts from a file: what is read, what is refused."""

import json

import pytest

from tunetrial.core.errors import DataError
from tunetrial.tasks.plain import PlainText, read_texts


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_are_texts_with_their_ids_and_clusters(tmp_path):
    rows = {"text": " one ", "id": "a", "cluster": "book", "more": 1}, {"text": "two\u2028lines"}
    assert read_texts(write(tmp_path / "held.jsonl", *rows)) == (
        PlainText("a", "book", " one "),
        PlainText("2", "2", "two\u2028lines"),
    )


def test_a_txt_file_is_texts_between_end_marks(tmp_path):
    path = tmp_path / "held.txt"
    path.write_bytes("\ufeffone\n\nstill one\u2028\n<|endoftext|>\r\n\n<|endoftext|>\ntwo".encode())
    assert read_texts(path) == (PlainText("1", "1", "one\n\nstill one"), PlainText("2", "2", "two"))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": " "}\n', "row 2: needs a field 'text'"),
        ("a.jsonl", b'{"body": "x"}\n', "row 1: needs a field 'text'.*None"),
        ("a.jsonl", b'{"text": "x", "id": 2}\n{"text": "y"}\n', "id '2' stands twice"),
        ("a.txt", b"<|endoftext|>\n \n", "has no text"),
        ("a.txt", b"\xff\xfea\x00", "UTF-16"),
        ("a.docx", b"x", "unknown kind"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, content, fault):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=fault):
        read_texts(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    for name in ("none.txt", "none.jsonl"):
        with pytest.raises(DataError, match=name):
            read_texts(tmp_path / name)
