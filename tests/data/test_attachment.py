"""Greedy parsing of many sentences at once against the readable definition, sentence by sentence."""

import numpy as np
import pytest
import torch
from torch import nn

from hwsim.data import attachment, conllu, transitions
from hwsim.data.conllu import Word
from hwsim.data.dataset import load
from hwsim.training.loop import train
from hwsim.training.recipe import Recipe

RELATIONS = ("a", "b", "c")
CLASSES = (transitions.SHIFT, *(f"{side}:{relation}" for side in ("left", "right") for relation in RELATIONS))
NUMBERS = {name: number for number, name in enumerate(CLASSES)}
VOCABULARIES = (
    conllu.rank([f"w{n}" for n in range(20)], 15),
    conllu.rank(["X", "Y", "Z"], 4),
    conllu.rank(list(RELATIONS), 5),
)
NAMED = np.array([0, *(VOCABULARIES[2].get(name.partition(":")[2], conllu.UNKNOWN) for name in CLASSES[1:])])


def random_tree(rng, words):
    """A projective sentence: the heads that a random run of the transition system gives."""
    stack, following, heads = [0], 1, [0] * (words + 1)
    while following <= words or len(stack) > 1:
        can_reduce = len(stack) > 2 or (len(stack) == 2 and following > words)
        if following <= words and (not can_reduce or rng.random() < 0.5):
            stack.append(following)
            following += 1
        elif len(stack) > 2 and rng.random() < 0.5:
            heads[stack.pop(-2)] = stack[-1]
        else:
            child = stack.pop()
            heads[child] = stack[-1]
    tags = rng.choice(["X", "Y", "Z", "PUNCT"], words)
    return [
        Word(f"W{rng.integers(20)}", str(tag), str(tag), heads[n + 1], str(rng.choice(RELATIONS)))
        for n, tag in enumerate(tags)
    ]


@pytest.fixture
def sentences():
    rng = np.random.default_rng(0)
    return [random_tree(rng, int(words)) for words in rng.integers(1, 15, 40)]


def encoded(sentences):
    return attachment.encode(sentences, *VOCABULARIES[:2], NAMED)


def follow(paths, break_at=None):
    """A network that knows the gold path, and checks that it is asked about the configurations on it."""
    step = 0

    def scores(rows):
        nonlocal step
        at_work = [path for path in paths if len(path) > step]
        assert rows.shape == (len(at_work), attachment.FEATURES)
        found = np.zeros((len(rows), len(CLASSES)), np.float32)
        for number, path in enumerate(at_work):
            row, transition = path[step]
            assert rows[number].tolist() == row, f"step {step}: other features than the definition's"
            found[number, NUMBERS[transition]] = 1.0
        step += 1
        return found

    return scores


def test_a_network_that_knows_the_gold_path_sees_its_features_and_gets_every_head(sentences):
    paths = [transitions.gold_path(sentence, VOCABULARIES) for sentence in sentences]
    assert all(paths), "projective by construction"
    assert attachment.attachment_score(encoded(sentences), follow(paths)) == 1.0
    changed = [list(path) for path in paths]
    row, transition = changed[0][1]
    changed[0][1] = [*row[:-1], row[-1] + 1], transition
    with pytest.raises(AssertionError, match="other features"):  # the comparison can fail
        attachment.attachment_score(encoded(sentences), follow(changed))


def test_examples_of_many_sentences_are_those_of_one_at_a_time(sentences):
    crossed = [Word(f"w{n}", "X", "X", head, "a") for n, head in enumerate((3, 4, 0, 3))]
    unseen = [Word("w1", "X", "Q", 2, "never seen"), Word("new", "PUNCT", "X", 0, "b")]
    mixed = [*sentences[:5], crossed, unseen, *sentences[5:]]
    paths = [step for sentence in mixed for step in transitions.gold_path(sentence, VOCABULARIES)]
    features, names = transitions.describe_all(mixed, VOCABULARIES)
    assert features.tolist() == [row for row, _ in paths] and names == [name for _, name in paths]
    assert not transitions.gold_transitions(crossed) and transitions.gold_transitions(unseen)


def by_hand(sentence, weights):
    """The same greedy parser for one sentence, with lists."""
    stack, following, heads = [0], 1, [0] * (len(sentence) + 1)
    children = {n: [] for n in range(len(sentence) + 1)}
    labeled = [Word(w.form, w.upos, w.xpos, w.head, "") for w in sentence]  # the parser knows no true relation
    while following <= len(sentence) or len(stack) > 1:
        row = np.array(transitions.describe(stack, following, children, labeled, VOCABULARIES))
        scores = row @ weights
        best, taken = None, None
        for name, number in NUMBERS.items():
            if name == transitions.SHIFT:
                fits = following <= len(sentence)
            else:
                over_root = len(stack) >= 2 and stack[-2] == 0
                done = following > len(sentence)
                fits = len(stack) >= 2 and (not over_root or (done and name.startswith("right")))
            if fits and (best is None or scores[number] > best):
                best, taken = scores[number], name
        if taken == transitions.SHIFT:
            stack.append(following)
            following += 1
            continue
        child = stack.pop(-2 if taken.startswith("left") else -1)
        heads[child] = stack[-1]
        children[stack[-1]].append(child)
        old = labeled[child - 1]
        labeled[child - 1] = Word(old.form, old.upos, old.xpos, old.head, taken.partition(":")[2])
    return heads


@pytest.mark.parametrize("seed", range(5))
def test_wild_decisions_build_the_same_trees_as_one_sentence_at_a_time(sentences, seed):
    weights = np.random.default_rng(seed).normal(size=(attachment.FEATURES, len(CLASSES)))
    found = attachment.parse(encoded(sentences), lambda rows: rows @ weights)
    for row, sentence in enumerate(sentences):
        heads = by_hand(sentence, weights)
        assert found[row, : len(heads)].tolist() == heads
        assert heads[1:].count(0) == 1, "one root word"


def test_punctuation_is_not_scored_and_scores_that_are_no_number_do_not_crash(sentences):
    whole = encoded(sentences)
    assert whole.scored.sum() == sum(word.upos != "PUNCT" for sentence in sentences for word in sentence)
    found = attachment.parse(whole, lambda rows: np.full((len(rows), len(CLASSES)), np.nan))
    right = sum(
        found[row, place] == word.head
        for row, sentence in enumerate(sentences)
        for place, word in enumerate(sentence, start=1)
        if word.upos != "PUNCT"
    )
    scores = attachment.attachment_score(whole, lambda rows: np.full((len(rows), len(CLASSES)), np.nan))
    assert scores == pytest.approx(right / whole.scored.sum())


class Guess(nn.Module):
    """A linear map over the features as numbers."""

    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(attachment.FEATURES, classes)

    def forward(self, x):
        return self.fc(x.float() / 10)


def test_training_selects_and_reports_by_attachment(tmp_path, sentences):
    (tmp_path / "ud-ewt").mkdir()
    lines = [
        "\n".join(
            f"{n}\t{w.form}\t_\t{w.upos}\t{w.xpos}\t_\t{w.head}\t{w.relation}\t_\t_" for n, w in enumerate(sentence, 1)
        )
        for sentence in sentences
    ]
    for split in conllu.SPLITS:
        (tmp_path / "ud-ewt" / f"en_ewt-ud-{split}.conllu").write_text("\n\n".join(lines) + "\n\n")
    data = load("ud_ewt_parsing", tmp_path)
    torch.manual_seed(0)
    model = Guess(len(data.classes))
    summary = train(model, data=data, recipe=Recipe(batch=32, epochs=2)).summary
    assert summary.measure == "UAS"
    with torch.no_grad():
        again = data.measure.test(lambda rows: model(torch.from_numpy(rows)).numpy(), None)
    assert summary.curves["test_accuracy"][-1] == again and 0 < again < 1
    few = data.measure.test(lambda rows: model(torch.from_numpy(rows)).detach().numpy(), 3)
    assert few != again, "a limit is a number of sentences"
