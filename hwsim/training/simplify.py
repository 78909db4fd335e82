"""meSimp: counting which hidden units top-k keeps, and removing those that it hardly ever does.

Wei et al., arXiv 1711.06528, after the algorithm in the authors' code. While training goes on, a removed unit is
masked: its weights and biases are held at 0 and its gradient counts as 0, so that tensors keep their shapes.
`hwsim.training.shrink` makes the smaller network. One point differs from the authors' code on purpose: a gradient of
0 is never kept and never a hit, where their heap credits the units of lowest index.

An LSTM's unit (`hwsim.training.units`) is hit by a word where top-k keeps the gradient of any of its four gates; a
word without any gradient, such as padding, is no example there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hwsim.errors import SpecError
from hwsim.training.optimizer import Optimizer
from hwsim.training.shrink import hidden_links
from hwsim.training.simplification import Simplification
from hwsim.training.sparse import SparseBackprop
from hwsim.training.units import Layer, clear, gates, gradient_sites, has_units, width

if TYPE_CHECKING:
    from hwsim.training.selection import KeptRows


class Simplifier:
    """The activity counters and masks of one training run.

    Raises SpecError if the network has no hidden linear layer or LSTM, under top-k, whose units could be removed.
    """

    def __init__(
        self, settings: Simplification, sparse: SparseBackprop | None, model: nn.Module, example: Tensor
    ) -> None:
        if sparse is None:
            raise SpecError("simplify: got no sparse backprop, expected it: units are removed by what top-k keeps")
        self.settings = settings
        self.layers: dict[str, Layer] = {}
        self.sites: dict[str, str] = {}  # the layer whose units' gradient comes by under a layer path
        self.counted: dict[str, str] = {}  # and where it is counted: once for each row
        for link in hidden_links(model, example):
            layer = model.get_submodule(link.layer)
            assert has_units(layer)
            sites = gradient_sites(link.layer, layer)
            if all(sparse.covers(site) for site in sites):
                self.layers[link.layer] = layer
                self.sites.update(dict.fromkeys(sites, link.layer))
                self.counted[sites[0]] = link.layer
        if not self.layers:
            raise SpecError(
                "simplify: the network has no hidden linear layer or LSTM, under top-k, that feeds exactly one other "
                "layer through functions that keep 0"
            )
        widths = {path: width(layer) for path, layer in self.layers.items()}
        self.hits = {path: torch.zeros(units, dtype=torch.int64) for path, units in widths.items()}
        self.examples = dict.fromkeys(widths, 0)  # rows counted since the last pruning
        self.living = {path: torch.ones(units, dtype=torch.bool) for path, units in widths.items()}

    # -- in the backward pass ----------------------------------------------------------------------------------------

    def silence(self, site: str, gradient: Tensor) -> Tensor:
        """Return the gradient (rows x outputs) that comes by at a layer path, with 0 for removed units."""
        path = self.sites.get(site)
        if path is None or bool(self.living[path].all()):
            return gradient
        dead = ~self.living[path].repeat(gates(self.layers[path]))
        return gradient.masked_fill(dead.to(gradient.device), 0.0)

    def count(self, site: str, gradient: Tensor, kept: KeptRows | None) -> None:
        """Count what top-k kept of a gradient (rows x outputs) at a layer's output; None: all of it.

        Ranked over the batch, a kept unit is hit once for each row whose gradient there is not 0.
        """
        path = self.counted.get(site)
        if path is None:
            return
        layer = self.layers[path]
        if gates(layer) > 1:
            self.hits[path] += unit_hits(gradient, kept, width(layer)).cpu()
            self.examples[path] += int((gradient != 0).any(1).sum())
            return
        if kept is None:
            found = torch.count_nonzero(gradient, dim=0)
        elif kept.offsets is not None:  # by example; the kernel keeps no zeros
            found = torch.bincount(kept.columns_of, minlength=width(layer))
        else:
            found = torch.zeros(width(layer), dtype=torch.int64, device=gradient.device)
            found[kept.columns] = torch.count_nonzero(gradient[:, kept.columns], dim=0)
        self.hits[path] += found.cpu()
        self.examples[path] += len(gradient)

    # -- after an update ---------------------------------------------------------------------------------------------

    def after_update(self, epoch: int, step: int, steps_per_epoch: int, optimizer: Optimizer) -> None:
        """Do what is due after the `step`-th update (from 1) of an epoch (from 0)."""
        if self.settings.ends_part(step, steps_per_epoch):
            if self.settings.resets_in(epoch):
                reset_moments(optimizer)
            if self.settings.prunes_in(epoch):
                self.prune()
                self.hold()

    def prune(self) -> None:
        """Remove the units that were hit too seldom, and start counting anew.

        A layer keeps its most active unit (the first of equals) in any case: a layer of none is no network.
        """
        for path, hits in self.hits.items():
            wanted = int(self.examples[path] * self.settings.threshold)
            living = self.living[path] & (hits >= wanted)
            if not bool(living.any()):
                living[int(torch.where(self.living[path], hits, -1).argmax())] = True
            self.living[path] = living
            self.hits[path] = torch.zeros_like(hits)
            self.examples[path] = 0

    def hold(self) -> None:
        """Set the weights and biases of removed units to 0: an optimizer's moments would move them."""
        for path, layer in self.layers.items():
            if not bool(self.living[path].all()):
                clear(layer, ~self.living[path])

    # -- what is left ------------------------------------------------------------------------------------------------

    @property
    def units(self) -> dict[str, int]:
        """Units that are left, by layer."""
        return {path: int(living.sum()) for path, living in self.living.items()}

    @property
    def average_dimension(self) -> float:
        """Mean number of units left in a hidden layer, as the paper reports it."""
        return sum(self.units.values()) / len(self.units)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as named tensors."""
        named: dict[str, Tensor] = {}
        for path in self.layers:
            named[f"simplify.hits.{path}"] = self.hits[path]
            named[f"simplify.living.{path}"] = self.living[path]
            named[f"simplify.examples.{path}"] = torch.tensor(self.examples[path])
        return named

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the state from a checkpoint's tensors."""
        for path in self.layers:
            self.hits[path] = tensors[f"simplify.hits.{path}"]
            self.living[path] = tensors[f"simplify.living.{path}"]
            self.examples[path] = int(tensors[f"simplify.examples.{path}"])


def unit_hits(gradient: Tensor, kept: KeptRows | None, units: int) -> Tensor:
    """Return in how many rows each unit of several gates, `units` columns apart, has a kept gradient in any of them."""
    held = (gradient if kept is None else kept.mask(gradient)) != 0
    return held.reshape(len(held), -1, units).any(1).sum(0)


def reset_moments(optimizer: Optimizer) -> None:
    """Set the moments of Adam, or SGD's momentum, to 0; the count of updates in Adam's corrections goes on."""
    for part in optimizer.parameters:
        for name, state in part.states.items():
            if name.startswith("moment"):
                state.zero_()
