"""How many bits the gradient behind a softmax needs, by the number of classes."""

from __future__ import annotations

from hwsim.errors import SpecError

ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero")


def softmax_bits(classes: int, *, mean_over: int = 1, rounding: str = "nearest_even") -> int:
    """Return the least number of bits, sign included, with which a softmax's gradient does not lose its classes.

    Park, Lee, Oh, Ha and Lee (arXiv 1810.05486) give a lower bound for the last layer from the number of classes. The
    derivation here is ours, because of their text we know the abstract and the introduction only:

    The gradient of cross-entropy at score i is p_i - [i = y]. It lies in [-1, 1], so a signed fixed-point word of B
    bits (``fixedB.(B-1)``) spends one on the sign and has steps of 2^-(B-1). Where training starts, each of the N
    classes has p_i = 1/N: the target's gradient is near -1, and the N - 1 others are 1/N each and add up to just as
    much. A width at which 1/N rounds to 0 keeps the target's part and drops all others: the gradient no longer adds
    up to 0, and all scores drift upwards together while no class is pushed down. What keeps 1/N, in steps:

        toward_zero    1/N >= 2^-(B-1)     B = ceil(log2 N) + 1
        nearest_away   1/N >= 2^-B         B = ceil(log2 N)         (half a step rounds up)
        nearest_even   1/N >  2^-B         B = floor(log2 N) + 1    (half a step rounds to 0)

    and at least 2, the narrowest word with a positive value. A loss that is a mean over M examples makes each gradient
    M times smaller, so that N M takes the place of N; with ``training.loss: sum`` it does not.

    Args:
        classes: N, 2 or more.
        mean_over: M, the examples (or words, pixels) that the mean is taken over; 1 for a summed loss.
        rounding: nearest_even, nearest_away or toward_zero.

    Raises:
        SpecError: another rounding (stochastic rounding keeps 1/N on average at any width), or no two classes.

    >>> [softmax_bits(n) for n in (10, 17, 49, 100, 1000)]
    [4, 5, 6, 7, 10]
    """
    for name, value, least in (("classes", classes, 2), ("mean_over", mean_over, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SpecError(f"softmax_bits: {name}: got {value!r}, expected a whole number, {least} or more")
    if rounding not in ROUNDINGS:
        raise SpecError(f"softmax_bits: rounding: got {rounding!r}, expected one of {', '.join(ROUNDINGS)}")
    smallest = classes * mean_over
    up = (smallest - 1).bit_length()  # ceil(log2)
    bits = {"toward_zero": up + 1, "nearest_away": up, "nearest_even": smallest.bit_length()}[rounding]
    return max(2, bits)


def loss_formats(bits: int, rounding: str = "nearest_even") -> dict[str, str]:
    """Return the casts of a softmax layer of this width: probabilities and gradient on one grid, 2^-(bits - 1).

    The gradient of a summed loss is then a difference of stored values, exact, and each of them is rounded once. A NaN
    is stored as 0: a run that diverges ends by its loss, which is NaN then, not by a cast.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 24:
        raise SpecError(f"softmax_bits: got {bits!r}, expected a whole number from 2 to 24")
    return {
        "loss.probability": f"ufixed{bits - 1}.{bits - 1} {rounding} nan_zero",
        "loss.gradient": f"fixed{bits}.{bits - 1} {rounding} nan_zero",
    }
