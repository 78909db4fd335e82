"""Downloading data sets (`hwsim data fetch`): from their publishers' addresses, into the user's cache, by checksum."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hwsim.data.dataset import cache_folder
from hwsim.errors import SpecError, UnsupportedError


@dataclass(frozen=True)
class RemoteFile:
    """A file to download: where it goes under the cache, its addresses (tried in turn) and its SHA-256."""

    relative: str
    urls: tuple[str, ...]
    sha256: str


def _mnist(file: str, sha256: str) -> RemoteFile:
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
    return RemoteFile(f"mnist/{file}", tuple(mirror + file for mirror in mirrors), sha256)


def _fashion(file: str, sha256: str) -> RemoteFile:
    mirrors = (
        "https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    )
    return RemoteFile(f"fashion-mnist/{file}", tuple(mirror + file for mirror in mirrors), sha256)


def _treebank(split: str, sha256: str) -> RemoteFile:
    """Return a file of the commit of May 2025 that the hashes are of."""
    address = "https://raw.githubusercontent.com/UniversalDependencies/UD_English-EWT/15d613d8447b/"
    file = f"en_ewt-ud-{split}.conllu"
    return RemoteFile(f"ud-ewt/{file}", (address + file,), sha256)


TREEBANK = (
    _treebank("train", "3fb78e2b55482c8ee00caa653af436c88c9e5bc9a73ce26e4ae3ddc79d2b7e7b"),
    _treebank("dev", "531a54ff90d6ab12201c5a50c3e78e6ddac4de69abc4bce5d275d3cd29efe2b6"),
    _treebank("test", "e266e515a0a7547657ed3d90d9ba46487d6bd251f27ad4269d4e8a427c8555cd"),
)

REMOTE: dict[str, tuple[RemoteFile, ...]] = {
    "digits": (),  # embedded in scikit-learn
    "mnist": (
        _mnist("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        _mnist("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        _mnist("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        _mnist("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "fashion_mnist": (
        _fashion("train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        _fashion("train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        _fashion("t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        _fashion("t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
    "cifar10": (
        RemoteFile(
            "cifar10/cifar-10-binary.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "ud_ewt": TREEBANK,
    "ud_ewt_upos": TREEBANK,
    "ud_ewt_parsing": TREEBANK,
    "tiny_shakespeare": (
        RemoteFile(
            "tinyshakespeare/input.txt",
            (
                "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b/data/tinyshakespeare/input.txt",
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            ),
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    ),
}


def fetch(name: str, folder: Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Download the files of a data set that are not there yet, and check each against its SHA-256.

    Returns the folder (the user's cache unless given). A failed download leaves nothing behind. Raises SpecError for
    an unknown name or a checksum that differs, UnsupportedError when no address can be reached.
    """
    if name not in REMOTE:
        raise SpecError(f"data: got {name!r}, expected one of {', '.join(REMOTE)}")
    target = folder or cache_folder()
    for file in REMOTE[name]:
        if progress:
            progress(file.relative)
        retrieve(file, target)
    return target


def retrieve(file: RemoteFile, folder: Path) -> Path:
    """Download one file by the first address that answers. Raises as `fetch` does."""
    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    unreachable = []
    for url in file.urls:
        try:
            place = folder / file.relative
            return Path(
                pooch.retrieve(
                    url,
                    known_hash=f"sha256:{file.sha256}",
                    fname=place.name,
                    path=place.parent,
                    downloader=pooch.HTTPDownloader(timeout=30),
                )
            )
        except ValueError:  # pooch: the hash of what came is not the known one; the file is already removed
            raise SpecError(f"data: {url}: the checksum differs from {file.sha256}; nothing was kept") from None
        except OSError as error:  # requests' errors are OSErrors
            unreachable.append(f"{url} ({type(error).__name__})")
    raise UnsupportedError(f"data: cannot download {file.relative}: no answer from {', '.join(unreachable)}")
