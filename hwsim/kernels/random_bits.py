"""Counter-based random bits: the same word for the same place, on any back end and any number of threads.

The mixer is named ``hwsim-mix-1`` and fixed; results are compared bit for bit, so it may never change under that name.
A *stream* is a 64-bit number made from what identifies a tensor operation; a *word* is 32 bits drawn from a stream at
counter (row-major index of the output element, original k). Stochastic rounding with n bits takes the top n bits.

word(stream, index, k):
    key  = mix64(stream + k * K_STEP + (index >> 32) * HIGH_STEP)          one per k: hoisted out of inner loops
    x    = (index mod 2**32) xor low half of key
    x    = x xor x >> 16;  x = x * M1;  x = x xor x >> 15;  x = x xor high half of key
    x    = x * M2;  word = x xor x >> 15                                     all mod 2**32

The multipliers are those of Ellis' hash prospector (lowest known bias for this shape), mix64 is the finalizer of
splitmix64 (Steele, Lea & Flood 2014; Stafford's mix 13). The high half of the key enters between the rounds, so two
streams are not shifted copies of each other.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

MIXER = "hwsim-mix-1"
MASK32 = 0xFFFF_FFFF
MASK64 = 0xFFFF_FFFF_FFFF_FFFF
K_STEP = 0x9E37_79B9_7F4A_7C15
HIGH_STEP = 0xD1B5_4A32_D192_ED03
M1 = 0x21F0_AAAD
M2 = 0x735A_2D97


def mix64(x: int) -> int:
    """Return a 64-bit permutation of x in which every input bit moves about half of the output bits."""
    x &= MASK64
    x = (x ^ (x >> 30)) * 0xBF58_476D_1CE4_E5B9 & MASK64
    x = (x ^ (x >> 27)) * 0x94D0_49BB_1331_11EB & MASK64
    return x ^ (x >> 31)


def stream(
    seed: int, domain: str = "user", role: str = "", gemm: str = "", stage: str = "", step: int = 0, call: int = 0
) -> int:
    """Return the 64-bit stream of one tensor operation.

    Args:
        seed: the user's seed (any integer).
        domain: who draws: "user", "train", "evaluate", ...
        role: path of the tensor, e.g. "fc1.weight".
        gemm: output, grad_input or grad_weight.
        stage: what is rounded: "cast", "accumulate", "product", ...
        step: optimizer step. call: ordinal of the call within the step; recomputation reuses both.
    """
    return _joined(_joined(_named_state(seed, domain, role, gemm, stage), step), call)


@lru_cache(maxsize=4096, typed=True)
def _named_state(seed: int, *names: str) -> int:
    """Return the part of `stream` that stays the same from step to step."""
    state = mix64(seed)
    for name in names:
        state = _joined(state, _text_number(name))
    return state


def _joined(state: int, number: int) -> int:
    return mix64((state + K_STEP) ^ mix64(number + HIGH_STEP))


def key(stream: int, k: int = 0, index_high: int = 0) -> int:
    """Return the 64-bit key of all words at one k whose index has the upper half `index_high`."""
    return mix64(stream + k * K_STEP + index_high * HIGH_STEP)


def word(stream: int, index: int, k: int = 0) -> int:
    """Return the 32-bit random word of output element `index` (row-major) at original position k."""
    keyed = key(stream, k, index >> 32)
    x = (index & MASK32) ^ (keyed & MASK32)
    x = (x ^ (x >> 16)) * M1 & MASK32
    x = x ^ (x >> 15) ^ (keyed >> 32)
    x = x * M2 & MASK32
    return x ^ (x >> 15)


def _text_number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
