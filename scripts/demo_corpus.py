"""The texts of the demo model: how they are split, tokenised and cut into the slices that are shipped."""

import codecs
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
HELDOUT_SHARE = 0.05
HELDOUT_SLICE_CHARS = 60_000
CALIBRATION_SLICE_CHARS = 30_000


@dataclass(frozen=True)
class SplitText:
    """One text, cut once: everything before the cut may be trained on, nothing after it is."""

    name: str
    training: str
    heldout: str


def _as_big5(error: UnicodeError) -> tuple[str, int]:
    """Reads a broken pair of bytes as Big5: one inaugural address carries its dashes and quotes that way."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.start + 2].decode("big5", errors="replace"), error.start + 2


codecs.register_error("big5_pair", _as_big5)


def read_texts(folder: Path) -> list[SplitText]:
    """Every `*.txt` of the folder, the last 5 % of each held out in one piece."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise SystemExit(f"{folder} holds no .txt file; pass the folder of the training texts with --text")
    texts = []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="big5_pair")
        cut = text.index("\n", int(len(text) * (1 - HELDOUT_SHARE))) + 1
        texts.append(SplitText(name=file.stem, training=text[:cut], heldout=text[cut:]))
    return texts


def write_slices(texts: list[SplitText], folder: Path) -> None:
    """Writes `heldout_NAME.txt` from each held-out part and one `calibration.txt` from the training parts."""
    folder.mkdir(parents=True, exist_ok=True)
    for text in texts:
        held = _whole_lines(text.heldout, 0, HELDOUT_SLICE_CHARS)
        (folder / f"heldout_{text.name}.txt").write_text(held, encoding="utf-8")
    middles = [_whole_lines(t.training, len(t.training) // 2, CALIBRATION_SLICE_CHARS) for t in texts]
    (folder / "calibration.txt").write_text("\n".join(middles), encoding="utf-8")


def _whole_lines(text: str, start: int, num_chars: int) -> str:
    """At most `num_chars` characters from the first line that begins at or after `start`."""
    begin = 0 if start == 0 else text.index("\n", start) + 1
    piece = text[begin : begin + num_chars]
    return piece[: piece.rindex("\n") + 1] if begin + num_chars < len(text) else piece


def train_tokenizer(texts: list[SplitText], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that saw the training parts only; id 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # By paragraphs, so that the trainer never splits one giant string.
    tokenizer.train_from_iterator((part for t in texts for part in t.training.splitlines(keepends=True)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """(num_tokens,) int64 ids; the warning about a model's length does not apply to a text that is cut later."""
    return np.asarray(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


class TrainingBlocks:
    """Blocks of `block_size + 1` tokens in random order; each epoch cuts every text at a new offset."""

    def __init__(self, texts_ids: list[np.ndarray], block_size: int, seed: int) -> None:
        self._texts_ids = texts_ids
        self._block_size = block_size
        self._rng = np.random.default_rng(seed)
        self._queue = np.empty((0, block_size + 1), dtype=np.int64)

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks in one pass over all texts."""
        return sum((len(ids) - self._block_size) // self._block_size for ids in self._texts_ids)

    def draw(self, num_blocks: int) -> np.ndarray:
        """(num_blocks, block_size + 1) token ids: inputs and, one further, their targets."""
        while len(self._queue) < num_blocks:
            self._queue = np.concatenate([self._queue, self._epoch()])
        taken, self._queue = self._queue[:num_blocks], self._queue[num_blocks:]
        return taken

    def _epoch(self) -> np.ndarray:
        size = self._block_size
        blocks = []
        for ids in self._texts_ids:
            first = int(self._rng.integers(size))
            starts = np.arange(first, len(ids) - size, size)
            blocks.append(np.stack([ids[s : s + size + 1] for s in starts]))
        return self._rng.permutation(np.concatenate(blocks))
