"""Windows of words from the text files of the Penn Treebank."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError

WINDOW = 20  # words, as Zaremba, Sutskever and Vinyals (2014) unroll their small network
END, UNKNOWN = "<eos>", "<unk>"
# The files that a split is read from, the first that is there.
FILES = {"train": ("ptb.train.txt", "ptb.valid.txt"), "test": ("ptb.test.txt",)}


class WordWindows(TensorDataset):
    """Windows of ``WINDOW`` words and, for each word, the word that follows it; both (N, T) int64.

    Numbers are places in ``vocabulary``.
    """

    def __init__(self, words: np.ndarray, vocabulary: tuple[str, ...], limit: int | None = None):
        number = (len(words) - 1) // WINDOW
        number = number if limit is None else min(limit, number)
        inputs, targets = (
            torch.from_numpy(words[shift : shift + number * WINDOW].reshape(number, WINDOW))
            for shift in (0, 1)
        )
        super().__init__(inputs, targets)
        self.vocabulary = vocabulary

    @property
    def num_classes(self) -> int:
        return len(self.vocabulary)


def load_words(root: Path, split: str, limit: int | None) -> WordWindows:
    """The Penn Treebank in Mikolov's form: one sentence a line, words apart by spaces.

    Lines end with the word <eos>. Windows follow each other without overlap; what is left at the
    end is dropped. The vocabulary has the words of the training file, the most frequent first, and
    <unk>, which stands for all others. Where ``ptb.train.txt`` is missing, ``ptb.valid.txt`` takes
    its place, for the vocabulary too.

    Args:
        root: the folder of ``ptb.train.txt`` or ``ptb.valid.txt``, and of ``ptb.test.txt``.
        limit: windows to take from the start; None for all.

    Raises:
        InputError: a file that is missing, or is no UTF-8 text of more than one window.
    """
    training = _words(_file(root, "train"))
    counts = Counter(training)
    counts.setdefault(UNKNOWN, 0)
    vocabulary = tuple(sorted(counts, key=lambda word: (-counts[word], word)))
    places = {word: place for place, word in enumerate(vocabulary)}
    path = _file(root, split)
    words = training if split == "train" else _words(path)
    if len(words) <= WINDOW:
        raise InputError(f"{path} has {len(words)} words; expected more than {WINDOW}")
    unknown = places[UNKNOWN]
    return WordWindows(np.array([places.get(w, unknown) for w in words]), vocabulary, limit)


def _file(root: Path, split: str) -> Path:
    for name in FILES[split]:
        if (root / name).is_file():
            return root / name
    raise InputError(
        f"no ptb data at {root}: expected {' or '.join(FILES[split])} there; give the folder of "
        "the Penn Treebank's text files as data_root"
    )


def _words(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a UTF-8 text") from error
    return [word for line in lines for word in (*line.split(), END)]
