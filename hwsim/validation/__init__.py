"""Simulated times and energies held against exact forms, measured silicon and published chips."""
