"""Text blocks: the protocol of the perplexity measurements, and one clear line for every bad file."""

from pathlib import Path

import pytest
import torch

from thermoe.errors import ConfigError, DataError
from thermoe.workloads import TextBlocks, TextMode, read_text


class NumberTokenizer:
    """Text of numbers, one token each: ids are then known without a real tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [int(word) for word in text.split()]


def write_numbers(path: Path, count: int, start: int = 0) -> Path:
    path.write_text(" ".join(str(start + i) for i in range(count)), encoding="utf-8")
    return path


def test_57360_tokens_as_16_rows_make_7_blocks_of_512(tmp_path):
    blocks = TextBlocks([write_numbers(tmp_path / "t.txt", 60_000)], NumberTokenizer(), max_tokens=57_360)

    assert len(blocks) == 7
    assert blocks.num_predictions == 16 * 3584
    last = blocks.batch(6)
    assert last.input_ids.shape == last.target_ids.shape == last.mask.shape == (16, 512)
    assert last.input_ids[2, 0] == 2 * 3585 + 6 * 512
    assert last.target_ids[15, 511] == 57_359  # the very last token is predicted
    assert last.mask.all()
    assert last.new_tokens == 0


def test_blocks_cover_each_row_once_and_targets_are_one_further(tmp_path):
    # 3 rows of 13 from 41 tokens (2 left over), blocks of 5: 5 + 5 + 2 positions.
    blocks = TextBlocks([write_numbers(tmp_path / "t.txt", 41)], NumberTokenizer(), batch_size=3, block_size=5)
    batches = [blocks.batch(i) for i in range(len(blocks))]

    assert [b.input_ids.shape[1] for b in batches] == [5, 5, 2]
    rows = torch.arange(39).view(3, 13)
    assert torch.equal(torch.cat([b.input_ids for b in batches], dim=1), rows[:, :-1])
    assert torch.equal(torch.cat([b.target_ids for b in batches], dim=1), rows[:, 1:])
    with pytest.raises(IndexError):
        blocks.batch(3)


def test_files_are_read_one_after_the_other(tmp_path):
    files = [write_numbers(tmp_path / "b.txt", 3), write_numbers(tmp_path / "a.txt", 4, start=100)]
    blocks = TextBlocks(files, NumberTokenizer(), batch_size=1, block_size=10)
    assert blocks.batch(0).input_ids.tolist() == [[0, 1, 2, 100, 101, 102]]


def test_prompts_have_their_full_length(tmp_path):
    # Rows of 20: 19 positions hold 2 whole prompts of 8.
    file = write_numbers(tmp_path / "t.txt", 40)
    blocks = TextBlocks([file], NumberTokenizer(), batch_size=2, block_size=8, mode=TextMode.GENERATION, new_tokens=6)
    assert len(blocks) == 2
    assert blocks.batch(1).input_ids.tolist() == [list(range(8, 16)), list(range(28, 36))]
    assert blocks.batch(1).new_tokens == 6


def test_fingerprint_tells_work_apart(tmp_path):
    file = write_numbers(tmp_path / "t.txt", 100)

    def fingerprint(**sizes):
        return TextBlocks([file], NumberTokenizer(), **{"batch_size": 2, "block_size": 8} | sizes).fingerprint

    assert fingerprint() == fingerprint()
    prints = [
        fingerprint(),
        fingerprint(batch_size=4),
        fingerprint(block_size=9),
        fingerprint(max_tokens=90),
        fingerprint(mode=TextMode.PREFILL),
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"\xef\xbb\xbf\n", "is empty"),
        (b"good \xff bad", r"not UTF-8 \(byte 5\)"),
        (b"1 2 3", "3 tokens, but 16 rows need at least 32"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_line(tmp_path, content, says):
    file = tmp_path / "given.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        TextBlocks([file], NumberTokenizer())
    assert "given.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_text_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_text(tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "bom.txt"
    file.write_bytes(b"\xef\xbb\xbfword\r\n")
    assert read_text(file) == "word\r\n"


def test_too_short_says_when_the_limit_is_to_blame(tmp_path):
    file = write_numbers(tmp_path / "t.txt", 100)
    with pytest.raises(DataError, match=r"10 tokens \(limited by max_tokens = 10\)"):
        TextBlocks([file], NumberTokenizer(), max_tokens=10)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"block_size": -1}, "block_size = -1"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"mode": TextMode.GENERATION}, "new_tokens = 0"),
        ({"new_tokens": 3}, "new_tokens = 3"),
    ],
)
def test_sizes_out_of_range_are_refused(tmp_path, arguments, says):
    file = write_numbers(tmp_path / "t.txt", 100)
    with pytest.raises(ConfigError, match=says):
        TextBlocks([file], NumberTokenizer(), **arguments)


def test_no_file_is_refused():
    with pytest.raises(ConfigError, match="no text file"):
        TextBlocks([], NumberTokenizer())
