"""The CPU back end: compiled, bit for bit equal to reference."""
