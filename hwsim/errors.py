"""The errors hwsim raises on purpose. The command line prints them as one line and never as a traceback."""

from __future__ import annotations


class HwsimError(Exception):
    """Base of every error that hwsim raises on purpose; ``str(error)`` is one self-contained message."""

    exit_code = 1


class SpecError(HwsimError, ValueError):
    """Input that hwsim cannot accept: says where it stands, what came and what was allowed.

    It is a ValueError too, so that a pydantic validator may raise it and the field is added to the message.

    Several independent mistakes in one file may be collected into one error (``problems``), so that a user can
    mend them in one go.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    @classmethod
    def at(cls, file: str | None, line: int | None, field: str | None, message: str) -> SpecError:
        """Build the one-line form ``file:line: field: message``; parts that are not known are left out."""
        return cls(describe_place(file, line, field, message))


class UnsupportedError(HwsimError):
    """A valid request that this back end, machine or build cannot do (never answered by something near it)."""

    exit_code = 3


def describe_place(file: str | None, line: int | None, field: str | None, message: str) -> str:
    """Return ``file:line: field: message`` with the unknown parts left out.

    >>> describe_place("chip.yaml", 14, "clock_ghz", "got '1 GHz', expected a positive number")
    "chip.yaml:14: clock_ghz: got '1 GHz', expected a positive number"
    """
    place = "" if file is None else f"{file}:{line}: " if line is not None else f"{file}: "
    return f"{place}{field}: {message}" if field else f"{place}{message}"
