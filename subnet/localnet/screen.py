"""Where the launcher's words go: lines above a live page on a terminal, lines alone elsewhere.

Law: shows what it is given, decides nothing about the run, and gives the terminal back however the run ends.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.text import Text

from subnet.chain.base import Subnet
from subnet.localnet.course import Course
from subnet.localnet.owner_news import OwnerNews
from subnet.localnet.progress import Progress
from subnet.localnet.public_status import Status
from subnet.localnet.view import page
from subnet.localnet.words import printable


class Screen:
    """One run's. `console` is the process's own terminal or pipe unless a test brings another."""

    def __init__(self, console: Console | None = None) -> None:
        # asked of the file itself: FORCE_COLOR and the like must not draw pages into a log
        self._console = console or Console(force_terminal=sys.stdout.isatty())
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._course = Course()
        self._progress: Progress | None = None
        self._news = OwnerNews()

    def say(self, line: str) -> None:
        """One line, which stays."""
        if self._is_live:
            self._console.print(Text(printable(line)))
        else:
            print(line, file=self._console.file, flush=True)

    def show(self, status: Status, names: Mapping[str, str], now_s: float, subnet: Subnet | None = None) -> list[str]:
        """Take in a status, `now_s` seconds after the launch. What is new in words; with a live page, the rare ones."""
        news = self._news.lines(status, subnet)
        if not self._is_live:
            self._progress = self._progress or Progress(names)
            return [*self._progress.lines(status, now_s, subnet), *news]
        self._course.note(status, now_s)
        made = page(status, self._course, names, subnet, self._console.height)
        if self._live is None:
            # refreshed by hand: no thread, and nothing is drawn that was not given
            self._live = Live(made, console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(made, refresh=True)
        return news

    def close(self) -> None:
        """The last page stays where it is; what is said from now on comes below it."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
