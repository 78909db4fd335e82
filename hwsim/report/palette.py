"""One color for one meaning on the whole page.

Hues are those of Okabe and Ito (2008), told apart with the common kinds of color blindness, darkened where white
paper would leave them too faint. Markers and dashes vary along with the colors, so color is never the only
difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from hwsim.records import Configuration

INK = "#1d2733"
MUTED = "#5b6775"

HUES = ("#0072b2", "#c44e00", "#00805e", "#a8508a", "#b07d00", "#2f8fc4", "#6b4fa0", "#7a5230")
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")

_MEANINGS = {
    # passes of the step
    "forward": "#0072b2",
    "loss": "#8a94a0",
    "grad_input": "#e0a100",
    "grad_weight": "#c44e00",
    "selection": "#6b4fa0",
    "other backward": "#d6a77a",
    "update": "#00805e",
    # what the array does
    "busy": "#00805e",
    "dependency": "#8a94a0",
    "vector": "#a8508a",
    "select": "#6b4fa0",
    "dram": "#c44e00",
    "scratchpad": "#e0a100",
    "fill_drain": "#56b4e9",
    # components of the energy
    "mac": "#0072b2",
    "static": "#8a94a0",
}


class Palette:
    """Colors by name: configurations by family and place in the family, passes and components by meaning."""

    def __init__(self, configurations: Sequence[Configuration] = (), baseline: str | None = None) -> None:
        self._colors = dict(_MEANINGS)
        self._order = {configuration.name: index for index, configuration in enumerate(configurations)}
        families: dict[str, list[str]] = {}
        for configuration in configurations:
            if configuration.name == baseline:
                self._colors[configuration.name] = INK
            else:
                families.setdefault(configuration.family, []).append(configuration.name)
        for index, members in enumerate(families.values()):
            hue = HUES[index % len(HUES)]
            for place, name in enumerate(members):
                self._colors[name] = _shade(hue, place, len(members))

    def color(self, name: str | None, place: int) -> str:
        """Color of a name; a name without a meaning takes the hue of its `place` among its figure's series."""
        found = self._colors.get(name) if name is not None else None
        return found or HUES[place % len(HUES)]

    def marker(self, name: str | None, place: int) -> str:
        """Marker of a configuration, the same in every figure; else that of the place."""
        return MARKERS[self._order.get(name or "", place) % len(MARKERS)]

    def dash(self, name: str | None, place: int) -> str:
        """Dash of a configuration's lines, the same in every figure; else that of the place."""
        return DASHES[self._order.get(name or "", place) % len(DASHES)]


def _shade(hue: str, place: int, count: int) -> str:
    """Darker to lighter within a family; a family of one wears the hue itself."""
    if count == 1:
        return hue
    toward_white = -0.35 + 0.8 * place / (count - 1)  # from 35 % darker to 45 % lighter
    parts = [int(hue[i : i + 2], 16) for i in (1, 3, 5)]
    end = 255 if toward_white > 0 else 0
    mixed = [round(part + (end - part) * abs(toward_white)) for part in parts]
    return "#" + "".join(f"{part:02x}" for part in mixed)
