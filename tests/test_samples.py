from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from idlm.errors import UserError
from idlm.samples import is_decoded, read_samples, write_samples

HEADER = {"checkpoint": "x", "steps": 16, "nfe": 16, "temperature": 0.9, "seed": 3}
ROWS = [
    {"text": "a — b\nc", "tokens": [1, 2, 3], "seed": 3, "index": 0},
    {"text": "line\u2028separator", "tokens": [4], "seed": 3, "index": 1},
]
GOOD = '{"text": "a", "tokens": [1]}'


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "new" / "samples.jsonl", HEADER, ROWS)
    assert read_samples(path) == (HEADER, ROWS)
    assert [p.name for p in path.parent.iterdir()] == ["samples.jsonl"]


def test_tensors_are_written_as_lists(tmp_path: Path) -> None:
    rows = [{"text": "a", "tokens": torch.tensor([5, 6])}]
    path = write_samples(tmp_path / "s.jsonl", {"nfe": torch.tensor(4)}, rows)
    header, read = read_samples(path)
    assert header == {"nfe": 4}
    assert read[0]["tokens"] == [5, 6]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "s.jsonl", HEADER, ROWS)
    with pytest.raises(ValueError, match="it needs text and tokens"):
        write_samples(path, HEADER, [*ROWS, {"text": "no tokens"}])
    assert read_samples(path) == (HEADER, ROWS)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "does not start with a header"),
        (GOOD, "does not start with a header"),
        ('{"steps": 4}', "no samples"),
        (f'{{"steps": 4}}\n{GOOD}\n{{"text": "b", "tok', "line 3 is not JSON"),
        ('{"steps": NaN}\n' + GOOD, "line 1 is not JSON"),
        (f'{{"steps": 4}}\n{GOOD}\n[1, 2]', "line 3 is a list"),
        ('{"steps": 4}\n{"tokens": [1]}', 'line 2 has no "text"'),
        ('{"steps": 4}\n{"text": null, "tokens": [1]}', 'line 2 has no "text"'),
        ('{"decoded": true}\n{"text": null, "tokens": [1]}', 'line 2 has no "text"'),
        (f'{{"decoded": false}}\n{GOOD}', 'line 2 needs "text": null'),
        ('{"decoded": false}\n{"tokens": [1]}', 'line 2 needs "text": null'),
        ('{"steps": 4}\n{"text": "a"}', 'line 2 has no "tokens"'),
        ('{"steps": 4}\n{"text": "a", "tokens": []}', 'line 2 has no "tokens"'),
        ('{"steps": 4}\n{"text": "a", "tokens": [1.5]}', 'line 2 has no "tokens"'),
        ('{"steps": 4}\n{"text": "a", "tokens": [-1]}', 'line 2 has no "tokens"'),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(
    tmp_path: Path, content: str, sentence: str
) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_samples(path)
    assert "\n" not in str(caught.value)


def test_samples_that_were_never_decoded_come_back_with_no_text(tmp_path: Path) -> None:
    header = {**HEADER, "decoded": False}
    rows = [{"text": None, "tokens": [1, 2], "seed": 3, "index": 0}]
    path = write_samples(tmp_path / "s.jsonl", header, rows)
    assert read_samples(path) == (header, rows)
    assert not is_decoded(read_samples(path)[0])
    assert is_decoded(HEADER)


@pytest.mark.parametrize("header", [HEADER, {**HEADER, "decoded": True}])
def test_a_text_that_the_header_does_not_announce_is_not_written(
    tmp_path: Path, header: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="sample 0 has a NoneType as text"):
        write_samples(tmp_path / "s.jsonl", header, [{"text": None, "tokens": [1]}])
    with pytest.raises(ValueError, match=r"sample 0 has a str as text.*decoded: False"):
        write_samples(tmp_path / "s.jsonl", {**header, "decoded": False}, ROWS)
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_samples(pipe, HEADER, ROWS)
        assert len(os.read(reader, 1 << 16).decode().split("\n")) == 4
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "s.jsonl"
    link.symlink_to(tmp_path / "real" / "s.jsonl")
    for rows in (ROWS, ROWS[:1]):
        write_samples(link, HEADER, rows)
        assert link.is_symlink()
        assert read_samples(tmp_path / "real" / "s.jsonl") == (HEADER, rows)


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        read_samples(tmp_path / "none.jsonl")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps({"steps": 4}).encode() + b"\n\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_samples(path)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_samples(tmp_path / "file" / "s.jsonl", HEADER, ROWS)
