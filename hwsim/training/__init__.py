"""An untouched torch network, trained in emulated arithmetic."""
