"""Real text as batches: the first T tokens as B contiguous rows, cut into blocks with fresh context.

Row r holds tokens r * len .. (r + 1) * len - 1 with len = T // B; a block that starts at position a
takes a .. a + S - 1 of every row and predicts a + 1 .. a + S. So 57,360 tokens as 16 rows of 3,585
make 7 blocks of 512 positions (3,584 predictions a row). The last block may be shorter.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from thermoe.errors import ConfigError, DataError
from thermoe.workloads.batches import TextBatch, TextMode


class TextTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """Token ids of the text."""
        ...


def read_text(path: Path) -> str:
    """The file's text, decoded as UTF-8.

    Raises:
        DataError: the file is missing, unreadable, not UTF-8, or holds nothing but white space.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"text file {path} does not exist: check the path given with --text") from None
    except OSError as err:
        raise DataError(
            f"text file {path} cannot be read ({err.strerror}): give a readable file of UTF-8 text"
        ) from err
    except UnicodeDecodeError as err:
        raise DataError(f"text file {path} is not UTF-8 (byte {err.start}): convert it, e.g. with iconv") from None
    if not text.strip():
        raise DataError(f"text file {path} is empty: give a file with text in it")
    return text


class TextBlocks:
    """Blocks of one or more text files, read one after the other.

    Args:
        files: Text files in UTF-8, joined in the order given.
        tokenizer: The model's tokenizer; no special tokens are added.
        batch_size: Rows (B).
        block_size: Positions of a block (S), or the length of a prompt in generation.
        max_tokens: Use at most this many tokens; None for all.
        mode: How the batches are meant to be run.
        new_tokens: Tokens to generate after each prompt; given exactly in generation.

    Raises:
        DataError: a file cannot be used or the text is too short for one block.
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        files: Sequence[Path | str],
        tokenizer: TextTokenizer,
        *,
        batch_size: int = 16,
        block_size: int = 512,
        max_tokens: int | None = None,
        mode: TextMode = TextMode.TEACHER_FORCED,
        new_tokens: int = 0,
    ) -> None:
        _check_sizes(files, batch_size, block_size, max_tokens, mode, new_tokens)
        self.mode = mode
        self.block_size = block_size
        self.new_tokens = new_tokens
        ids = [i for file in files for i in tokenizer.encode(read_text(Path(file)), add_special_tokens=False)]
        self._rows_BN = _as_rows(ids[:max_tokens], batch_size, self._shortest_row, files, max_tokens)

    @property
    def _shortest_row(self) -> int:
        """Tokens a row needs: one whole prompt in generation, otherwise one position; and one target."""
        return 1 + (self.block_size if self.mode is TextMode.GENERATION else 1)

    @property
    def batch_size(self) -> int:
        """Rows (B)."""
        return self._rows_BN.shape[0]

    @property
    def num_predictions(self) -> int:
        """Positions of all batches together, over all rows."""
        return sum(self.batch(i).input_ids.numel() for i in range(len(self)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the token ids and their arrangement: equal for equal work."""
        digest = hashlib.sha256(self._rows_BN.numpy().tobytes())
        digest.update(f"{tuple(self._rows_BN.shape)} {self.block_size} {self.mode} {self.new_tokens}".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        positions = self._rows_BN.shape[1] - 1
        # Every prompt has its full length; a block that is scored may be shorter.
        return positions // self.block_size if self.mode is TextMode.GENERATION else -(-positions // self.block_size)

    def batch(self, index: int) -> TextBatch:
        """Block number `index`; IndexError beyond the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        start = index * self.block_size
        end = min(start + self.block_size, self._rows_BN.shape[1] - 1)
        input_ids = self._rows_BN[:, start:end]
        return TextBatch(
            index=index,
            mode=self.mode,
            input_ids=input_ids,
            target_ids=self._rows_BN[:, start + 1 : end + 1],
            mask=torch.ones_like(input_ids, dtype=torch.bool),
            new_tokens=self.new_tokens,
        )


def _as_rows(
    ids: Sequence[int], batch_size: int, shortest_row: int, files: Sequence[Path | str], max_tokens: int | None
) -> Tensor:
    """(B, len) contiguous rows; tokens that do not fill a row are left out."""
    length = len(ids) // batch_size
    if length < shortest_row:
        limited = "" if max_tokens is None or len(ids) < max_tokens else f" (limited by max_tokens = {max_tokens})"
        raise DataError(
            f"{', '.join(str(f) for f in files)}: {len(ids)} tokens{limited}, but {batch_size} rows need at least "
            f"{batch_size * shortest_row}: give more text or a smaller batch size"
        )
    return torch.tensor(ids[: batch_size * length], dtype=torch.int64).view(batch_size, length)


def _check_sizes(
    files: Sequence[Path | str],
    batch_size: int,
    block_size: int,
    max_tokens: int | None,
    mode: TextMode,
    new_tokens: int,
) -> None:
    if not files:
        raise ConfigError("no text file was given: name at least one with --text")
    for what, value in {"batch_size": batch_size, "block_size": block_size, "max_tokens": max_tokens}.items():
        if value is not None and value < 1:
            raise ConfigError(f"{what} = {value}: needs to be 1 or more")
    if (mode is TextMode.GENERATION) != (new_tokens > 0):
        raise ConfigError(f"new_tokens = {new_tokens} in mode {mode}: generation needs 1 or more, other modes 0")
