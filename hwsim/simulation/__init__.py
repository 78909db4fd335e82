"""A workload on an accelerator: cycles and energy."""
