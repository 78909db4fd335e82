"""Which number format and which accumulator each part of training uses: the `PrecisionPlan`.

A plan is a list of rules. A rule names layers by a pattern, a `Cast` for each role that a tensor can play and a
`MacSpec` for each sum. The first rule whose pattern matches a layer decides everything for it; a role the rule does
not name stays in float32. A layer that no rule matches, and a rule that no layer uses, are errors.

Roles. GEMM operands, cast when a GEMM reads them (each GEMM from the stored tensor):
``input`` (of output and grad_weight), ``weight`` (of output and grad_input), ``gradient`` (of grad_input and
grad_weight) and ``bias``; ``grad_weight.gradient`` and the like name one role in one GEMM only and go before the
plain name. Stored tensors, cast when they are written: ``activation``, ``activation_gradient``,
``weight_gradient``, ``statistics`` (means and variances), ``loss`` (what softmax and cross-entropy store;
``loss.gradient`` and the like name one part), ``master_weight``, ``optimizer_state`` and ``compensation`` (which
turns on Kahan-compensated updates). ``bias.master_weight`` and the like name one role for biases only and go before
the plain name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache

from hwsim.arithmetic.mac import Accelerator, MacSpec, Native, Order, parse_mac
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NumberFormat
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError
from hwsim.training.softmax_width import loss_formats

OPERAND_ROLES = ("input", "weight", "bias", "gradient")
STORED_ROLES = (
    "activation",
    "activation_gradient",
    "weight_gradient",
    "statistics",
    "loss",
    "master_weight",
    "optimizer_state",
    "compensation",
)
GEMMS = ("output", "grad_input", "grad_weight")
READ_BY = {"output": ("input", "weight"), "grad_input": ("gradient", "weight"), "grad_weight": ("gradient", "input")}
SUMS = ("reduce", "accumulate_grad")  # bias gradients, statistics, losses · gradients that meet at one tensor
SCALED_ROLES = ("input", "weight", "gradient")
PLAIN_OUTPUT = (("input", "output"), ("weight", "output"), ("bias", "output"), ("activation", ""))
PLAIN_GRADIENTS = (
    ("gradient", "grad_input"),
    ("gradient", "grad_weight"),
    ("weight", "grad_input"),
    ("input", "grad_weight"),
    ("activation_gradient", ""),
    ("weight_gradient", ""),
)
FLOAT32_SUM = MacSpec(accumulator="float32", order="sequential")
NATIVE_SUM = MacSpec(accumulator="float32", order="native")

LOSS_PARTS = ("exponential", "probability", "logarithm", "gradient")  # what softmax and cross-entropy store
PARAMETER_ROLES = ("weight_gradient", "master_weight", "optimizer_state", "compensation")  # of weights and biases

CAST_KEYS = (
    *OPERAND_ROLES,
    *STORED_ROLES,
    *(f"{gemm}.{role}" for gemm in GEMMS for role in OPERAND_ROLES),
    *(f"loss.{part}" for part in LOSS_PARTS),
    *(f"bias.{role}" for role in PARAMETER_ROLES),
)
MAC_KEYS = (*GEMMS, *SUMS)


@dataclass(frozen=True)
class Scaling:
    """One power-of-two scale for a whole operand, chosen so that its largest magnitude just fits the format.

    With a `tile` (across, along) there is one scale for each tile of the operand, `along` elements of the axis that the
    GEMM reduces by `across` of the other: its largest magnitude over the format's largest value, in ``float32`` or as
    the next ``power_of_two`` above. The GEMM then sums codes tile by tile (`hwsim.training.tiles`).

    ``current`` looks at the tensor itself; ``delayed`` takes the largest of the last `history` steps, as hardware
    that cannot read a tensor twice does. Power-of-two scales are exact, so they move the range and nothing else.
    """

    method: str = "current"
    history: int = 16
    margin: int = 0  # binades kept free below the largest value
    tile: tuple[int, int] | None = None
    scale: str = "power_of_two"

    def __post_init__(self) -> None:
        if self.scale not in ("power_of_two", "float32"):
            raise SpecError(f"scaling.scale: got {self.scale!r}, expected 'power_of_two' or 'float32'")
        if self.tile is None and self.scale != "power_of_two":
            raise SpecError("scaling.scale: got 'float32' without a tile, expected 'power_of_two'")
        if self.tile is not None:
            object.__setattr__(self, "tile", tuple(self.tile))
            if len(self.tile) != 2 or min(self.tile) < 1:
                raise SpecError(f"scaling.tile: got {list(self.tile)}, expected two lengths of 1 or more")
            if self.method != "current" or self.margin:
                raise SpecError("scaling.tile: goes with method 'current' and no margin")
        if self.method not in ("current", "delayed"):
            raise SpecError(f"scaling.method: got {self.method!r}, expected 'current' or 'delayed'")
        if self.history < 1:
            raise SpecError(f"scaling.history: got {self.history}, expected 1 or more steps")


@dataclass(frozen=True)
class Rule:
    """What the layers whose path matches the pattern `layers` use. Formats and MACs may be given as text.

    Raises SpecError for a role or GEMM that does not exist.
    """

    layers: str = "*"
    casts: Mapping[str, Cast] = field(default_factory=dict)
    macs: Mapping[str, MacSpec] = field(default_factory=dict)
    scaling: Mapping[str, Scaling] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_keys("casts", self.casts, CAST_KEYS)
        check_keys("macs", self.macs, MAC_KEYS)
        check_keys("scaling", self.scaling, SCALED_ROLES)
        casts = {key: Cast.parse(value) for key, value in self.casts.items()}
        macs = {key: parse_mac(value) for key, value in self.macs.items()}
        for key in SUMS:
            if key in macs and isinstance(macs[key].order, Accelerator):
                raise SpecError(f"macs.{key}: got order accelerator, which is for GEMMs; name an order")
        scaling = {k: v if isinstance(v, Scaling) else Scaling(v) for k, v in self.scaling.items()}
        for role in scaling:
            held = [cast for key, cast in casts.items() if key.rpartition(".")[2] == role]
            if any(isinstance(cast.format, BlockScaled) for cast in held):
                raise SpecError(f"scaling.{role}: got a block format, which brings its own scales; leave this out")
        _check_tiles(scaling, casts)
        whole = any(s.tile is None for s in scaling.values())
        if whole and any(isinstance(macs[gemm].accumulator, FixedPoint) for gemm in GEMMS if gemm in macs):
            raise SpecError("scaling: got a fixed-point accumulator, expected a float one: the scale moves its grid")
        object.__setattr__(self, "casts", casts)
        object.__setattr__(self, "macs", macs)
        object.__setattr__(self, "scaling", scaling)

    def matches(self, layer: str) -> bool:
        """Return whether this rule's pattern covers the layer path (shell wildcards; ``*`` crosses dots)."""
        return fnmatchcase(layer, self.layers)


def _check_tiles(scaling: Mapping[str, Scaling], casts: Mapping[str, Cast]) -> None:
    """Raise SpecError unless all operands have tiles of one length along k, or none has."""
    tiles = {role: scaling[role].tile if role in scaling else None for role in SCALED_ROLES}
    if not any(tiles.values()):
        return
    for role, tile in tiles.items():
        if tile is None:
            raise SpecError(
                f"scaling.{role}: got no tile, expected one as for {', '.join(r for r in tiles if tiles[r])}"
            )
        if role not in casts:
            raise SpecError(f"casts.{role}: got none, expected a format for its tiles")
    if len({tile[1] for tile in tiles.values() if tile is not None}) > 1:
        got = ", ".join(f"{role} {list(tile or ())}" for role, tile in tiles.items())
        raise SpecError(f"scaling: got tiles {got}, expected one length along the reduced axis")


class LayerPrecision:
    """What one layer uses: the rule that matched, with the float32 defaults filled in."""

    def __init__(self, layer: str, rule: Rule) -> None:
        self.layer = layer
        self.rule = rule
        casts = {key: None if is_float32(cast.format) else cast for key, cast in rule.casts.items()}
        self._casts = {("", role): casts.get(role) for role in (*OPERAND_ROLES, *STORED_ROLES)}
        self._casts |= {(g, r): self._named(casts, g, r) for g in GEMMS for r in OPERAND_ROLES}
        self._casts |= {("bias", r): self._named(casts, "bias", r) for r in PARAMETER_ROLES}
        self._casts |= {("loss", p): casts.get(f"loss.{p}", casts.get("loss")) for p in LOSS_PARTS}
        own_sums = "reduce" in rule.macs and not isinstance(rule.macs["reduce"].order, Native)
        self.emulates_sums = own_sums
        self.tiled = any(scaling.tile is not None for scaling in rule.scaling.values())  # scales by tile
        self.names_loss = any(key.partition(".")[0] == "loss" for key in casts)
        self.emulates_loss = self.names_loss or own_sums  # else softmax and losses are torch's, in float32
        self.emulates_statistics = "statistics" in casts or own_sums  # else so are normalizations
        self._macs = {key: rule.macs.get(key, FLOAT32_SUM) for key in MAC_KEYS}
        self._formats = {gemm: self._formats_of(gemm) for gemm in GEMMS}
        self.plain_output = self._is_plain(("output",), PLAIN_OUTPUT) and not self.tiled
        self.plain_gradients = self._is_plain(("grad_input", "grad_weight"), PLAIN_GRADIENTS)
        self.plain_bias = isinstance(self.mac("reduce").order, Native) and self.cast("weight_gradient", "bias") is None

    def _is_plain(self, gemms: tuple[str, ...], casts: tuple[tuple[str, str], ...]) -> bool:
        """Return whether these GEMMs add up in native order, and nothing that they read or make is cast."""
        native = all(isinstance(self.mac(gemm).order, Native) for gemm in gemms)
        return native and all(self.cast(role, where) is None for role, where in casts)

    def cast(self, role: str, where: str = "") -> Cast | None:
        """Return how a tensor in this role is stored, or read by the GEMM `where`; None means float32, as it is.

        For what belongs to a bias (its gradient, its states, itself) `where` is ``bias``.
        """
        return self._casts[where, role]

    @staticmethod
    def _named(casts: Mapping[str, Cast | None], where: str, role: str) -> Cast | None:
        """Return the cast of ``where.role`` if the rule names it, else that of the role."""
        named = f"{where}.{role}"
        return casts[named] if named in casts else casts.get(role)

    def operand_formats(self, gemm: str) -> tuple[NumberFormat | None, NumberFormat | None]:
        """Return the formats in which a GEMM reads its two operands, where a format holds for each value by itself."""
        return self._formats[gemm]

    def _formats_of(self, gemm: str) -> tuple[NumberFormat | None, NumberFormat | None]:
        first, second = READ_BY[gemm]

        def known(role: str) -> NumberFormat | None:
            cast = self.cast(role, gemm)
            by_itself = cast is not None and not isinstance(cast.format, BlockScaled) and role not in self.rule.scaling
            return cast.format if cast is not None and by_itself else None

        return known(first), known(second)

    def mac(self, key: str) -> MacSpec:
        """Return how one of the three GEMMs, or one of the other sums, adds up."""
        return self._macs[key]

    def scaling(self, role: str) -> Scaling | None:
        """Return how an operand in this role is scaled before its cast; None means not at all."""
        return self.rule.scaling.get(role)


@dataclass(frozen=True)
class LossScale:
    """The factor on the loss that lifts small gradients into the range of a narrow format; removed by the update.

    A power of two, so that it changes ranges and nothing else. With `dynamic`, an update whose gradients overflowed
    is skipped and the factor halved; after `growth_steps` good ones it doubles.
    """

    factor: float = 1.0
    dynamic: bool = False
    growth_steps: int = 1000

    def __post_init__(self) -> None:
        mantissa = abs(self.factor).hex().partition("0x1.")[2].partition("p")[0].strip("0")
        if self.factor <= 0 or mantissa:
            raise SpecError(f"loss_scale: got {self.factor}, expected a power of two")


@dataclass(frozen=True)
class PrecisionPlan:
    """The arithmetic of a whole training run: rules (first match wins), a name and the loss scale.

    `uncovered` says what happens to a function that hwsim does not know: ``error``, or ``float32`` to run it as torch
    does and list it in the results.
    """

    name: str
    rules: tuple[Rule, ...]
    loss_scale: LossScale = LossScale()
    uncovered: str = "error"

    def __post_init__(self) -> None:
        if not self.rules:
            raise SpecError(f"plan {self.name!r}: rules: got none, expected at least one")
        if self.uncovered not in ("error", "float32"):
            raise SpecError(f"plan {self.name!r}: uncovered: got {self.uncovered!r}, expected 'error' or 'float32'")
        object.__setattr__(self, "rules", tuple(self.rules))

    @classmethod
    def uniform(
        cls,
        forward: str | NumberFormat = "float32",
        backward: str | NumberFormat | None = None,
        accumulator: str | NumberFormat = "float32",
        *,
        rounding: str = "nearest_even",
        overflow: str = "native",
        order: str = "sequential",
        stored: str | NumberFormat | None = None,
        optimizer_state: str | NumberFormat = "float32",
        master_weight: str | NumberFormat = "float32",
        softmax_bits: int | None = None,
        loss_scale: float = 1.0,
        name: str | None = None,
    ) -> PrecisionPlan:
        """Return the plan that treats every layer alike.

        GEMMs read inputs and weights in `forward`, gradients in `backward` (default: as forward) and sum in
        `accumulator` by `order`. What leaves a GEMM stays in the accumulator's format (`stored` says otherwise)
        until a GEMM reads it again. Weights and optimizer states are float32 unless given. `rounding` and `overflow`
        hold for the casts of operands; `overflow` holds for a fixed-point accumulator too. `softmax_bits` is the width
        in fixed point of the training loop's softmax: its probabilities and its gradient (see `hwsim.softmax_bits`).

        >>> str(PrecisionPlan.uniform(forward="float8_e4m3fn", backward="float8_e5m2", accumulator="bfloat16"))
        'float8_e4m3fn/float8_e5m2 accumulated in bfloat16'
        """
        forward, accumulator = parse_format(forward), parse_format(accumulator)
        backward = forward if backward is None else parse_format(backward)
        resting = parse_format(stored) if stored is not None else travels_as_float32(accumulator)
        sums_overflow = overflow if isinstance(accumulator, FixedPoint) else "native"
        mac = MacSpec(accumulator=accumulator, overflow=sums_overflow, order=order)
        at_rest = Cast(resting, overflow=overflow if isinstance(resting, FixedPoint) else "native")

        def operand(number: NumberFormat) -> Cast:
            return Cast(number, rounding=rounding, overflow=overflow)

        casts = {
            "input": operand(forward),
            "weight": operand(forward),
            "gradient": operand(backward),
            "activation": at_rest,
            "activation_gradient": at_rest,
            "optimizer_state": Cast(optimizer_state),
            "master_weight": Cast(master_weight),
        }
        title = name or f"{forward}/{backward} accumulated in {accumulator}"
        rules = [Rule("*", casts, dict.fromkeys(GEMMS, mac))]
        if softmax_bits is not None:
            title = name or f"{title}, softmax of {softmax_bits} bits"
            at_loss = {key: Cast.parse(text) for key, text in loss_formats(softmax_bits, rounding).items()}
            rules.insert(0, Rule("loss", casts | at_loss, rules[0].macs))
        return cls(title, tuple(rules), LossScale(loss_scale))

    @property
    def adds_gradients(self) -> bool:
        """Whether some rule says how gradients that meet at one tensor add up; else autograd adds them in float32."""
        return any("accumulate_grad" in rule.macs for rule in self.rules)

    @property
    def needs_machine(self) -> bool:
        """Whether some GEMM sums in ``order: accelerator``, which only a machine can tell."""
        return any(isinstance(mac.order, Accelerator) for rule in self.rules for mac in rule.macs.values())

    def with_orders(self, order_of: Callable[[NumberFormat, NumberFormat], str | Order]) -> PrecisionPlan:
        """Return the plan with ``order: accelerator`` replaced by what `order_of` says for the operands' formats."""

        def resolved(rule: Rule) -> Rule:
            layer, macs = LayerPrecision("", rule), dict(rule.macs)
            for gemm, mac in rule.macs.items():
                if isinstance(mac.order, Accelerator):
                    read = (layer.cast(role, gemm) for role in READ_BY[gemm])
                    a, b = (parse_format("float32") if cast is None else cast.format for cast in read)
                    order = order_of(a, b)
                    macs[gemm] = MacSpec(mac.accumulator, mac.rounding, mac.overflow, mac.product, order)
            return replace(rule, macs=macs)

        return replace(self, rules=tuple(resolved(rule) for rule in self.rules))

    def layer(self, path: str) -> LayerPrecision:
        """Return what the layer uses. Raises SpecError when no rule matches it."""
        for rule in self.rules:
            if rule.matches(path):
                return LayerPrecision(path, rule)
        patterns = ", ".join(repr(rule.layers) for rule in self.rules)
        raise SpecError(
            f"plan {self.name!r}: no rule matches layer {path!r}; the patterns are {patterns} "
            "(end with '*' for the rest)"
        )

    def check(self, layers: Iterable[str]) -> None:
        """Check the rules against a network's layer paths. Raises SpecError for unmatched ones and unused rules."""
        paths = tuple(layers)
        used = {id(self.layer(path).rule) for path in paths}
        problems = [
            f"plan {self.name!r}: rules[{index}].layers: pattern {rule.layers!r} is used by no layer; "
            f"the layers are {', '.join(paths)}"
            for index, rule in enumerate(self.rules)
            if id(rule) not in used
        ]
        if problems:
            raise SpecError(*problems)

    def with_loss_scale(self, factor: float, dynamic: bool = False) -> PrecisionPlan:
        """Return the same plan with another loss scale."""
        return replace(self, loss_scale=LossScale(factor, dynamic))

    def __str__(self) -> str:
        return self.name


def check_keys(field_name: str, given: Mapping[str, object], allowed: tuple[str, ...]) -> None:
    """Raise SpecError for the first key that is not allowed, with the nearest one that is."""
    for key in given:
        if key not in allowed:
            near = get_close_matches(key, allowed, 1)
            hint = f". Did you mean {near[0]!r}?" if near else ""
            raise SpecError(f"{field_name}.{key}: unknown, expected one of {', '.join(allowed)}{hint}")


def is_bias(path: str) -> bool:
    """Return whether the parameter at this path is a bias: ``fc1.bias``, an LSTM's ``bias_ih_l0``, ``in_proj_bias``."""
    return "bias" in path.rpartition(".")[2]


@cache
def is_float32(number: NumberFormat) -> bool:
    """Return whether a cast to this format changes nothing, because every tensor travels as float32."""
    return number == parse_format("float32")


def travels_as_float32(number: NumberFormat) -> NumberFormat:
    """Return the format itself if float32 holds all its values, else float32 (definitions A1)."""
    exact = number.bits <= (32 if isinstance(number, FloatingPoint) else 24)
    return number if exact else parse_format("float32")
