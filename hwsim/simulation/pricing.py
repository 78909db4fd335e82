"""What an op costs in energy: its counts times the machine's prices, component by component."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.number import NumberFormat
from hwsim.hardware.accelerator import Accelerator, Memory
from hwsim.hardware.energy import EnergyTable, Range, load_energy_table
from hwsim.simulation.program import Counts


class Prices:
    """Prices of one machine: the numbers in its file where it has some, else the energy table it names."""

    def __init__(self, machine: Accelerator, table: EnergyTable | None = None) -> None:
        self.machine = machine
        self.table = table or load_energy_table(machine.energy.table)
        self._mac = lru_cache(maxsize=None)(self.table.mac_pj)
        self._operation = lru_cache(maxsize=None)(self.table.vector_op_pj)

    @cached_property
    def dram(self) -> Range:
        """pJ of a byte to or from DRAM."""
        given = self.machine.dram.pj_per_byte
        return Range(*given) if given else self.table.dram_pj_per_byte(self.machine.dram.kind)

    @cached_property
    def memories(self) -> dict[str, tuple[Range, Range]]:
        """pJ of a byte (read, written) by on-chip memory."""
        return {memory.name: (self._sram(memory, False), self._sram(memory, True)) for memory in self.machine.memories}

    def _sram(self, memory: Memory, write: bool) -> Range:
        given = memory.write_pj_per_byte if write else memory.read_pj_per_byte
        if given:
            return Range(*given)
        return self.table.sram_pj_per_byte(memory.capacity_kib, memory.word_bytes * 8, write=write)

    def mac(self, mac: MacSpec, a: NumberFormat, b: NumberFormat) -> Range:
        """pJ of one MAC."""
        return self._mac(mac, a, b)

    def compare(self, format: NumberFormat) -> Range:
        """pJ of one compare in the select unit."""
        select = self.machine.select
        if select is not None and select.pj_per_compare is not None:
            return Range(*select.pj_per_compare)
        return self.table.compare_pj(format)

    def operations(self, operations: Mapping[str, int], elements: int, format: NumberFormat) -> Range:
        """pJ of `elements` times these vector operations."""
        total = Range(0.0, 0.0, 0.0)
        for name, count in operations.items():
            total += self._operation(name, format) * (count * elements)
        return total

    def movement(self, counts: Counts) -> dict[str, Range]:
        """pJ of the bytes that moved, by memory."""
        energy = {"dram": self.dram * (counts.dram_read + counts.dram_written)}
        inner, outer = self.machine.scratchpad, self.machine.outermost
        read, write = self.memories[inner.name]
        energy[inner.name] = read * counts.inner_read + write * counts.inner_written
        if outer is not inner:
            read, write = self.memories[outer.name]
            energy[outer.name] = read * counts.outer_read + write * counts.outer_written
        return energy

    def static(self, time_us: float) -> Range:
        """pJ drawn in this time whether or not there is work (W x us = uJ = 1e6 pJ)."""
        static_w = self.machine.power.static_w if self.machine.power else 0.0
        energy = static_w * time_us * 1e6
        return Range(energy, energy, energy)
