"""One network a file, plain torch without hwsim (installed as hwsim.models)."""
