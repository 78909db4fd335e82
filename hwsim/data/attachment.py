"""Unlabeled attachment score (UAS): whole sentences parsed greedily by a network, and the share of heads it gets right.

The parser runs on its own decisions. All sentences take a step at once, so a step is one evaluation of the network on
as many rows as sentences are still at work; a sentence of n words takes 2n steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwsim.data.conllu import PADDING, UNKNOWN, Word
from hwsim.data.dataset import Scores

FEATURES = 48  # 18 words, 18 tags, 12 relations
NOWHERE = -1  # the place of a word that is not there; arrays have a last column for it
PUNCTUATION = "PUNCT"  # words with this universal tag are not scored


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences as a parser reads them. Column 0 is the root, columns behind a sentence's words are padding."""

    lengths: np.ndarray  # int64 (sentences,)
    words: np.ndarray  # int64 (sentences, longest + 2)
    tags: np.ndarray  # the same
    heads: np.ndarray  # the same: the word's true head
    scored: np.ndarray  # bool, the same: words that count
    relations: np.ndarray  # int64 (classes,): number of the relation that each transition gives, 0 for shift

    def __len__(self) -> int:
        return len(self.lengths)

    def head(self, count: int | None) -> Sentences:
        """Return the first sentences only; None means all."""
        parts = (self.lengths, self.words, self.tags, self.heads, self.scored)
        lengths, words, tags, heads, scored = (part[:count] for part in parts)
        return Sentences(lengths, words, tags, heads, scored, self.relations)


def encode(
    sentences: Sequence[Sequence[Word]], words: dict[str, int], tags: dict[str, int], relations: np.ndarray
) -> Sentences:
    """Return sentences as numbers; `words` are by lower-case form."""
    width = max(map(len, sentences)) + 2
    arrays = np.zeros((3, len(sentences), width), np.int64)
    arrays[:2] = PADDING
    arrays[:2, :, 0] = UNKNOWN
    scored = np.zeros((len(sentences), width), bool)
    for row, sentence in enumerate(sentences):
        for place, word in enumerate(sentence, start=1):
            numbers = words.get(word.form.lower(), UNKNOWN), tags.get(word.xpos, UNKNOWN), word.head
            arrays[:, row, place] = numbers
            scored[row, place] = word.upos != PUNCTUATION
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    return Sentences(lengths, arrays[0], arrays[1], arrays[2], scored, relations)


def attachment_score(sentences: Sentences, scores: Scores) -> float:
    """Return the share of scored words whose head is the true one, when the network parses greedily.

    Every sentence counts, projective or not; punctuation does not.
    """
    right = (parse(sentences, scores) == sentences.heads) & sentences.scored
    return int(right.sum()) / max(1, int(sentences.scored.sum()))


def parse(sentences: Sentences, scores: Scores) -> np.ndarray:
    """Return the heads (sentences, longest + 2) of the trees that greedy arc-standard parsing finds.

    The best transition that is allowed is taken, the first of equals: no shift without a word left, no head for the
    root, and nothing hangs on the root before all words are read, so each tree has one root word.
    """
    state = _State(sentences)
    for step in range(2 * int(sentences.lengths.max(initial=0))):
        rows = np.flatnonzero(sentences.lengths * 2 > step)
        found = np.nan_to_num(np.asarray(scores(state.describe(rows)), np.float64), nan=-np.finfo(np.float64).max)
        state.advance(rows, np.where(state.allowed(rows), found, -np.inf).argmax(1))
    return state.heads


def replay(sentences: Sentences, paths: Sequence[np.ndarray]) -> np.ndarray:
    """Return the features (transitions of all paths, 48) of what comes before each transition, sentence by sentence."""
    state = _State(sentences)
    lengths = np.array([len(path) for path in paths], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    taken = np.concatenate([*paths, np.zeros(0, np.int64)])
    features = np.empty((len(taken), FEATURES), np.int64)
    for step in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > step)
        features[starts[rows] + step] = state.describe(rows)
        state.advance(rows, taken[starts[rows] + step])
    return features


class _State:
    """Stacks, buffers and arcs of all sentences."""

    def __init__(self, sentences: Sentences) -> None:
        self.sentences = sentences
        count, width = sentences.words.shape
        shape = (count, width)
        self.last = width - 1  # padding, whatever the sentence
        self.stack = np.zeros(shape, np.int64)
        self.depth = np.ones(len(sentences), np.int64)  # the root lies at the bottom
        self.following = np.ones(len(sentences), np.int64)  # the first word of the buffer
        self.heads = np.zeros(shape, np.int64)
        self.relation = np.full(shape, PADDING, np.int64)
        # By word: its outermost child on each side, and the one next to that. Arc-standard attaches outwards.
        self.left, self.left2, self.right, self.right2 = (np.full(shape, NOWHERE, np.int64) for _ in range(4))

    def _from_top(self, rows: np.ndarray, number: int) -> np.ndarray:
        """Return the words that lie `number` deep in the stacks (1: the top)."""
        depth = self.depth[rows]
        return np.where(depth >= number, self.stack[rows, depth - number], NOWHERE)

    def describe(self, rows: np.ndarray) -> np.ndarray:
        """Return the 48 features (rows, 48), the same as `hwsim.data.transitions.describe` defines."""
        places = [self._from_top(rows, number) for number in (1, 2, 3)]
        places += [np.minimum(self.following[rows] + number, self.last) for number in (0, 1, 2)]
        for top in places[:2]:
            left, right = self.left[rows, top], self.right[rows, top]
            places += [left, right, self.left2[rows, top], self.right2[rows, top]]
            places += [self.left[rows, left], self.right[rows, right]]
        columns = [self.sentences.words[rows, place] for place in places]
        columns += [self.sentences.tags[rows, place] for place in places]
        columns += [self.relation[rows, place] for place in places[6:]]
        return np.stack(columns, 1)

    def allowed(self, rows: np.ndarray) -> np.ndarray:
        """Return which transitions (rows, classes) may be taken: shift, then left ones, then right ones."""
        done = self.following[rows] > self.sentences.lengths[rows]
        two, root_below = self.depth[rows] >= 2, self._from_top(rows, 2) == 0
        ways = np.stack([~done, two & ~root_below, two & (~root_below | done)], 1)
        each = (len(self.sentences.relations) - 1) // 2
        return np.repeat(ways, [1, each, each], axis=1)

    def advance(self, rows: np.ndarray, transitions: np.ndarray) -> None:
        """Take one transition in each of the sentences `rows`."""
        each = (len(self.sentences.relations) - 1) // 2
        shifted = rows[transitions == 0]
        self.stack[shifted, self.depth[shifted]] = self.following[shifted]
        self.depth[shifted] += 1
        self.following[shifted] += 1
        arcs = transitions > 0
        rows, transitions = rows[arcs], transitions[arcs]
        top, below = self._from_top(rows, 1), self._from_top(rows, 2)
        leftwards = transitions <= each
        head, child = np.where(leftwards, top, below), np.where(leftwards, below, top)
        self.heads[rows, child] = head
        self.relation[rows, child] = self.sentences.relations[transitions]
        for outer, second, some in ((self.left, self.left2, leftwards), (self.right, self.right2, ~leftwards)):
            second[rows[some], head[some]] = outer[rows[some], head[some]]
            outer[rows[some], head[some]] = child[some]
        self.depth[rows] -= 1
        self.stack[rows, self.depth[rows] - 1] = head
