"""hwsim: train real networks in emulated arithmetic, and cost the same steps on an accelerator model."""

__version__ = "0.1.0"
