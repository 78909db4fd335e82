"""One accelerator a YAML file, a source beside every number (installed as hwsim.accelerators)."""
