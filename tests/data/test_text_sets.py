"""CIFAR-10, CoNLL-U, parser transitions, characters: small made-up files, damage, the real ones where at hand."""

import gzip
import io
import os
import tarfile

import numpy as np
import pytest

from hwsim.data import attachment, cifar, conllu, transitions
from hwsim.data.dataset import load
from hwsim.errors import SpecError

SENTENCE = """# text = The dog saw a cat .
1\tThe\tthe\tDET\tDT\t_\t2\tdet\t_\t_
2\tdog\tdog\tNOUN\tNN\t_\t3\tnsubj\t_\t_
3\tsaw\tsee\tVERB\tVBD\t_\t0\troot\t_\t_
4\ta\ta\tDET\tDT\t_\t5\tdet\t_\t_
5\tcat\tcat\tNOUN\tNN\t_\t3\tobj\t_\t_
6\t.\t.\tPUNCT\t.\t_\t3\tpunct\t_\t_

"""


def batch(count, seed):
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (count, 3, 32, 32), np.uint8), rng.integers(0, 10, count).astype(np.uint8)
    return images, labels, np.concatenate([labels[:, None], images.reshape(count, -1)], 1).tobytes()


@pytest.fixture
def cifar_folder(tmp_path):
    """The publisher's archive with 1,001 images a batch, and the images it holds."""
    (tmp_path / "cifar10").mkdir()
    parts = [batch(1001, seed) for seed in range(6)]
    with tarfile.open(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, (_, _, raw) in zip(cifar.BATCHES, parts, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return tmp_path, parts


def test_archive_folder_and_compact_form_hold_the_same(cifar_folder, tmp_path):
    folder, parts = cifar_folder
    data = load("cifar10", folder)
    assert (len(data.train), len(data.dev), len(data.test)) == (5, 5000, 1001)
    assert np.array_equal(data.test.targets, parts[5][1])
    assert np.allclose(data.test.inputs, cifar.normalize(parts[5][0]))
    other = tmp_path / "compact"
    (other / "cifar10").mkdir(parents=True)
    members = {}
    for name, images, labels in (
        ("train", np.concatenate([p[0] for p in parts[:5]]), np.concatenate([p[1] for p in parts[:5]])),
        ("test", *parts[5][:2]),
    ):
        planes = images.transpose(1, 0, 2, 3).copy()
        planes[0] -= planes[1]
        planes[2] -= planes[1]
        for axis in (-2, -1):
            planes = np.diff(planes, axis=axis, prepend=np.uint8(0)).astype(np.uint8)
        members |= {f"{name}_residual": planes, f"{name}_labels": labels}
    np.savez(other / "cifar10" / "cifar10.npz", **members)
    again = load("cifar10", other)
    assert again.sha256 == data.sha256
    unpacked = tmp_path / "unpacked"
    (unpacked / "cifar10").mkdir(parents=True)
    with tarfile.open(folder / "cifar10" / "cifar-10-binary.tar.gz") as archive:
        archive.extractall(unpacked / "cifar10")  # made above; Python 3.11.2 knows no filter
    assert load("cifar10", unpacked).sha256 == data.sha256


def test_damaged_images_are_one_line(cifar_folder):
    folder, _ = cifar_folder
    path = folder / "cifar10" / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SpecError, match="damaged or truncated") as caught:
        load("cifar10", folder)
    assert "\n" not in str(caught.value)
    path.unlink()
    (folder / "cifar10" / "cifar10.npz").write_bytes(b"PK nonsense")
    with pytest.raises(SpecError, match="damaged or not the compact form"):
        load("cifar10", folder)
    with pytest.raises(SpecError, match="expected a multiple of 3073"):
        cifar.split_records(b"x" * 3074, "batch")


def test_sentences_are_read_and_spans_left_out(tmp_path):
    span = SENTENCE.replace("4\ta\t", "4-5\tacat" + "\t_" * 8 + "\n4\ta\t")
    for name, raw in (("a.conllu", SENTENCE.encode()), ("b.conllu.gz", gzip.compress(span.encode()))):
        (tmp_path / name).write_bytes(raw)
        (words,) = conllu.read_conllu(tmp_path / name)
        assert [w.form for w in words] == ["The", "dog", "saw", "a", "cat", "."]
        assert [w.head for w in words] == [2, 3, 0, 5, 3, 3]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (SENTENCE.replace("\tdet\t_\t_", "\tdet\t_").encode(), ":2: 9 columns, expected 10"),
        (SENTENCE.replace("2\tdog", "7\tdog").encode(), ":3: got word 7"),
        (b"", "holds no sentence"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_what_is_not_conllu_is_named_with_its_line(tmp_path, raw, said):
    path = tmp_path / "x.conllu"
    path.write_bytes(raw)
    with pytest.raises(SpecError, match=said) as caught:
        conllu.read_conllu(path)
    assert str(path) in str(caught.value)


def test_tagging_rows_have_padding_that_does_not_count(tmp_path):
    (tmp_path / "ud-ewt").mkdir()
    for split in conllu.SPLITS:
        (tmp_path / "ud-ewt" / f"en_ewt-ud-{split}.conllu").write_text(SENTENCE * 2)
    data = load("ud_ewt", tmp_path)
    assert data.train.inputs.shape == (2, 40, 4) and data.classes == (".", "DT", "NN", "VBD")
    assert data.train.targets[0, :6].tolist() == [1, 2, 3, 1, 2, 0] and (data.train.targets[:, 6:] == -1).all()
    assert (data.train.inputs[:, 6:] == 0).all()
    assert [conllu.shape(w) for w in ("dog", "Dog", "DOG", "12", "a1", "...", "iPod")] == [1, 2, 3, 4, 5, 6, 7]


def test_gold_transitions_build_the_gold_tree(tmp_path):
    path = tmp_path / "x.conllu"
    path.write_text(SENTENCE)
    (sentence,) = conllu.read_conllu(path)
    steps = [transition for _, transition in transitions.gold_path(sentence, ({}, {}, {}))]
    assert steps == [
        "shift", "shift", "left:det", "shift", "left:nsubj", "shift", "shift", "left:det", "right:obj",
        "shift", "right:punct", "right:root",
    ]  # fmt: skip
    stack, following, heads = [0], 1, {}
    for step in steps:
        if step == "shift":
            stack.append(following)
            following += 1
        else:
            child = stack.pop(-2 if step.startswith("left") else -1)
            heads[child] = stack[-1]
    assert [heads[i] for i in range(1, 7)] == [w.head for w in sentence]
    rows = [row for row, _ in transitions.gold_path(sentence, ({"dog": 5}, {}, {}))]
    assert all(len(row) == attachment.FEATURES for row in rows)
    assert rows[0][3:6] == [conllu.UNKNOWN, 5, conllu.UNKNOWN], "the first three words of the buffer"


def test_a_sentence_that_is_not_projective_has_no_gold_path(tmp_path):
    crossed = SENTENCE.replace("\t5\tdet", "\t6\tdet").replace(
        "1\tThe\tthe\tDET\tDT\t_\t2", "1\tThe\tthe\tDET\tDT\t_\t5"
    )
    path = tmp_path / "x.conllu"
    path.write_text(crossed)
    assert transitions.gold_path(conllu.read_conllu(path)[0], ({}, {}, {})) == []


def test_characters_are_cut_so_that_each_target_follows_its_input(tmp_path):
    (tmp_path / "tinyshakespeare").mkdir()
    text = "To be, or not to be: " * 400
    (tmp_path / "tinyshakespeare" / "input.txt").write_text(text)
    data = load("tiny_shakespeare", tmp_path)
    spelled = "".join(data.classes[c] for c in data.train.inputs[0])
    assert spelled == text[:128] and data.classes[data.train.targets[0, -1]] == text[128]
    assert data.train.inputs[1, 0] == data.train.targets[0, -1]
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("short")
    with pytest.raises(SpecError, match="5 characters, expected at least"):
        load("tiny_shakespeare", tmp_path)


@pytest.mark.data
@pytest.mark.skipif("HWSIM_DATA" not in os.environ, reason="HWSIM_DATA names no folder of data sets")
@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [
        ("cifar10", (45_000, 5_000, 10_000), 10),
        ("ud_ewt", (13_117, 2_045, 2_132), 49),
        ("ud_ewt_upos", (13_117, 2_045, 2_132), 17),
        ("tiny_shakespeare", (7_842, 435, 435), 65),
        pytest.param("ud_ewt_parsing", (392_214, 48_430, 48_866), 103, marks=pytest.mark.slow),
    ],
)
def test_the_real_files_load(name, sizes, classes):
    data = load(name)
    assert (len(data.train), len(data.dev), len(data.test)) == sizes and len(data.classes) == classes
