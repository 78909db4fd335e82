"""The GPU back end: Triton kernels, bit for bit equal to reference."""
