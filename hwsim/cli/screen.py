"""What all commands print with: results to standard output, messages and progress to standard error."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from hwsim.errors import HwsimError

if TYPE_CHECKING:
    from rich.console import Console

    from hwsim.pipeline import Progress, Step

PIPED_WIDTH = 200  # columns where there is no terminal to ask, so that a piped table keeps a row on a line


def output() -> Console:
    """Standard output."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def messages() -> Console:
    """Standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(error: HwsimError) -> None:
    """Print one line for every problem that the error carries."""
    console = messages()
    for line in str(error).splitlines():
        console.print("[bold red]error:[/] ", end="")
        console.print(line, markup=False)


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a plain table; headings named in `right` are columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        side = "right" if heading in right else "left"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=index == 0)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    output().print(table, soft_wrap=False)


@contextmanager
def run_progress() -> Iterator[Progress]:
    """Show where a run stands: a bar on a terminal, one line a finished trial elsewhere."""
    console = messages()
    with ExitStack() as stack:
        show = stack.enter_context(_bars(console)) if console.is_terminal else _lines(console)
        heed = stack.enter_context(heeding_interrupts())

        def show_unless_interrupted(step: Step) -> None:
            heed()
            show(step)

        yield show_unless_interrupted


@contextmanager
def heeding_interrupts() -> Iterator[Callable[[], None]]:
    """Give a function that raises KeyboardInterrupt if Ctrl-C was pressed and nobody heard of it.

    Python drops an exception that is raised inside a finalizer or a callback of the garbage collector, and long
    training passes many of these. Libraries turn it into one of their own, as pydantic does while it writes a record:
    any error that leaves after Ctrl-C counts as the interruption.
    """
    pressed = False

    def note(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def heed() -> None:
        if pressed:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that one hears signals
        yield heed
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield heed
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {stage: bars.add_task(stage, total=None, visible=False, note="") for stage in ("train", "simulate")}

        def show(step: Step) -> None:
            bars.update(
                tasks[step.stage],
                description=f"{step.stage} {min(step.index + 1, step.count)}/{step.count}",
                completed=step.index + step.share,
                total=step.count,
                visible=True,
                note=f"{step.name} {step.note}".strip(),
            )
            if step.stage == "train" and step.share >= 1.0:
                console.print(f"trained {step.name}: {step.note}", markup=False)

        yield show


def _lines(console: Console) -> Progress:
    def show(step: Step) -> None:
        if step.share >= 1.0 and (step.stage == "train" or step.index + 1 == step.count):
            what = f"trained {step.name}: {step.note}" if step.stage == "train" else f"simulated {step.count} steps"
            console.print(what, markup=False)

    return show
