"""UD English EWT as the classification task of a greedy arc-standard parser (Chen & Manning, EMNLP 2014).

Each example is one configuration of stack and buffer on the gold path of a projective sentence, described by 48
features, with the transition to take. Networks are judged by the unlabeled attachment score of whole sentences, for
which the parser runs on its own decisions (`hwsim.data.attachment`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from hwsim.data import attachment
from hwsim.data.conllu import PADDING, UNKNOWN, WORDS, Word, rank, read_splits
from hwsim.data.dataset import Dataset, Measure, Scores, Split

TAGS, RELATIONS = 64, 64  # room for the numbers of tags and relations, padding and unknown among them
SHIFT = "shift"

Tree = dict[int, list[int]]  # children so far of each word, in order


def load_parsing(folders: tuple[Path, ...]) -> Dataset:
    """Return the transitions: int64 features (n, 48), each kind numbered by itself, and the class to take.

    Sentences that are not projective have no gold path and are left out of the transitions; the attachment scores of
    dev and test are over all sentences.
    """
    splits, digest = read_splits(folders)
    words = [word for sentence in splits["train"] for word in sentence]
    vocabularies = (
        rank([word.form.lower() for word in words], WORDS),
        rank([word.xpos for word in words], TAGS),
        rank([word.relation for word in words], RELATIONS),
    )
    relations = sorted({word.relation for word in words})
    classes = transition_names(relations)
    numbers = {name: number for number, name in enumerate(classes)}

    def encode(sentences: list[list[Word]]) -> Split:
        features, names = describe_all(sentences, vocabularies)
        return Split(features, np.array([numbers.get(name, -1) for name in names], np.int64))

    train, dev, test = (encode(splits[split]) for split in ("train", "dev", "test"))
    given = relations_given(classes, vocabularies[2])
    judged = [attachment.encode(splits[split], *vocabularies[:2], given) for split in ("dev", "test")]
    measure = Measure("UAS", *(partial(_attachment_score, sentences) for sentences in judged))
    return Dataset("ud_ewt_parsing", train, dev, test, classes, digest, measure)


def _attachment_score(sentences: attachment.Sentences, scores: Scores, limit: int | None) -> float:
    return attachment.attachment_score(sentences.head(limit), scores)


def transition_names(relations: Sequence[str]) -> tuple[str, ...]:
    """Return all transitions over some relations: shift, the left ones, the right ones."""
    return (SHIFT, *(f"{side}:{relation}" for side in ("left", "right") for relation in relations))


def relations_given(transitions: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    """Return the number of the relation that each transition gives to its child; 0 for shift."""
    return np.array([0, *(numbers.get(name.partition(":")[2], UNKNOWN) for name in transitions[1:])], np.int64)


def describe_all(sentences: list[list[Word]], vocabularies: tuple[dict[str, int], ...]) -> tuple[np.ndarray, list[str]]:
    """Return the features (n, 48) and transitions on all gold paths: what `gold_path` gives, many sentences at once."""
    paths = [gold_transitions(sentence) for sentence in sentences]
    projective = [sentence for sentence, path in zip(sentences, paths, strict=True) if path]
    paths = [path for path in paths if path]
    names = transition_names(sorted({word.relation for sentence in projective for word in sentence}))
    numbers = {name: number for number, name in enumerate(names)}
    encoded = attachment.encode(projective, vocabularies[0], vocabularies[1], relations_given(names, vocabularies[2]))
    taken = [np.array([numbers[name] for name in path], np.int64) for path in paths]
    return attachment.replay(encoded, taken), [name for path in paths for name in path]


def gold_transitions(sentence: list[Word]) -> list[str]:
    """Return the transitions to the gold tree; nothing if it is not projective."""
    return [transition for transition, _, _, _ in _gold_steps(sentence)]


def gold_path(sentence: list[Word], vocabularies: tuple[dict[str, int], ...]) -> list[tuple[list[int], str]]:
    """Return the configurations on the way to the gold tree with their transitions; nothing if it is not projective.

    This is the definition; `describe_all` is its fast twin.
    """
    return [
        (describe(stack, following, children, sentence, vocabularies), transition)
        for transition, stack, following, children in _gold_steps(sentence, copies=True)
    ]


def _gold_steps(sentence: list[Word], copies: bool = False) -> list[tuple[str, list[int], int, Tree]]:
    """Return each gold transition with the stack, the next word and the children before it (`copies`: of their own)."""
    heads = [0, *(word.head for word in sentence)]
    waiting = [0] * len(heads)  # children that each word still has to get
    for head in heads[1:]:
        waiting[head] += 1
    stack, following = [0], 1
    children: Tree = {index: [] for index in range(len(heads))}
    path: list[tuple[str, list[int], int, Tree]] = []
    while following < len(heads) or len(stack) > 1:
        transition = _gold_step(stack, heads, waiting, sentence)
        if transition == SHIFT and following == len(heads):
            return []
        if copies:
            path.append((transition, list(stack), following, {word: list(some) for word, some in children.items()}))
        else:
            path.append((transition, stack, following, children))
        if transition == SHIFT:
            stack.append(following)
            following += 1
            continue
        left = transition.startswith("left")
        child = stack.pop(-2 if left else -1)
        children[stack[-1]].append(child)
        waiting[stack[-1]] -= 1
    return path


def _gold_step(stack: list[int], heads: list[int], waiting: list[int], sentence: list[Word]) -> str:
    """Return the arc-standard transition of the static oracle."""
    if len(stack) >= 2:
        below, top = stack[-2], stack[-1]
        if below != 0 and heads[below] == top and waiting[below] == 0:
            return f"left:{sentence[below - 1].relation}"
        if heads[top] == below and waiting[top] == 0:
            return f"right:{sentence[top - 1].relation}"
    return SHIFT


def describe(
    stack: list[int], following: int, children: Tree, sentence: list[Word], vocabularies: tuple[dict[str, int], ...]
) -> list[int]:
    """Return the 48 features: 18 places as words, as tags, and the 12 that are children as relations.

    The places: three from the stack, three from the buffer; of the two topmost words the first and second leftmost
    and rightmost child, and the leftmost of the leftmost, and the rightmost of the rightmost.
    """
    places: list[int | None] = [stack[-n] if len(stack) >= n else None for n in (1, 2, 3)]
    places += [following + n if following + n <= len(sentence) else None for n in (0, 1, 2)]
    for n in (1, 2):
        top = stack[-n] if len(stack) >= n else None
        left, right = _child(children, top, -1, 0), _child(children, top, 1, 0)
        places += [left, right, _child(children, top, -1, 1), _child(children, top, 1, 1)]
        places += [_child(children, left, -1, 0), _child(children, right, 1, 0)]
    words, tags, relations = vocabularies

    def number(place: int | None, attribute: str, numbers: dict[str, int]) -> int:
        if place is None:
            return PADDING
        value = "" if place == 0 else getattr(sentence[place - 1], attribute)
        return numbers.get(value.lower() if attribute == "form" else value, UNKNOWN)

    return [
        *(number(place, "form", words) for place in places),
        *(number(place, "xpos", tags) for place in places),
        *(number(place, "relation", relations) for place in places[6:]),
    ]


def _child(children: Tree, of: int | None, side: int, nth: int) -> int | None:
    """Return the nth outermost child on one side (-1 left, 1 right) of a word."""
    if of is None:
        return None
    found = sorted(child for child in children[of] if (child - of) * side > 0)
    found = found if side < 0 else found[::-1]
    return found[nth] if nth < len(found) else None
