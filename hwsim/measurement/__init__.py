"""The same work on a real machine, measured."""
