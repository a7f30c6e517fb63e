"""An argument parser, and checks of paths that were typed, whose complaints are one sentence with a way out."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NoReturn

from embedlab.errors import UserError, nearest

__all__ = ["NAME", "Parser", "check_new", "check_out", "in_our_words"]

NAME: Final = 220  # bytes of a name, beside which stand files of longer ones; file systems take 255
SAID: Final = {
    r"^argument (\S+): invalid int value: (.*)$": r"`\1` must be a whole number, got \2",
    r"^argument (\S+): invalid float value: (.*)$": r"`\1` must be a number, got \2",
    r"^argument (\S+): expected .*$": r"`\1` must be followed by a value, got none",
    r"^argument (\S+): ignored explicit argument (.*)$": r"`\1` must go without a value, got \2",
    r"^argument (\S+): invalid choice: (.*) \(choose from (.*)\)$": r"`\1` must be one of \3, got \2",
    r"^the following arguments are required: (.*)$": r"`\1` must be given, got none",
    r"^(--\S+\.help): Expected a dot import path string: (.*)$": r"`\1` must be followed by the name of a class, got '\2'",
    r'^Invalid option "(.*)" for (\S+)$': r"`\2` must go without a value, got '\1'",
    r"^unrecognized arguments: (.*)$": r"`\1` must be an option, got something else",
}


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting; options and names may come in any order, never abbreviated.

    Args:
        prog: The command.
        description: What it does.
        epilog: What its help ends with.
        elsewhere: Ways out for options that it lacks, and that are likely to be typed.
    """

    def __init__(
        self, prog: str, description: str, epilog: str = "", elsewhere: Mapping[str, str] | None = None
    ) -> None:
        self.elsewhere = elsewhere or {}
        super().__init__(
            prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse what was typed after the subcommand.

        Raises:
            UserError: If it cannot be understood.
        """
        for place, (option, word) in enumerate(pairwise(["", *arguments])):
            if not word.strip() or (word.startswith("--") and word.endswith("=")):
                positional = self._positional(arguments[:place])
                name = word.removesuffix("=").strip() or (option if option.startswith("-") else positional)
                raise UserError(f"`{name}` must have a value, got an empty text; give one.")
        found, unknown = self.parse_known_intermixed_args(list(arguments))
        if unknown:
            option = unknown[0].partition("=")[0]
            if not option.startswith("-"):
                raise UserError(
                    f"`{option}` must be left out, as {self.prog} takes one {self._word}; give one at a time."
                )
            raise UserError(f"`{option}` must be an option of {self.prog}; {self._way(option)}.")
        return found

    def _way(self, option: str) -> str:
        """Return the way out for an option that there is not."""
        if (known := self.elsewhere.get(option)) is not None:
            return known
        there = sorted(own.removeprefix("--") for own in self._option_string_actions if own.startswith("--"))
        there.remove("help")
        if (near := nearest(option.lstrip("-"), there)) is not None:
            return f"did you mean --{near}"
        return (
            f"there are {', '.join(f'--{own}' for own in there)}" if there else "leave it out, as it takes no options"
        )

    def _positional(self, before: Sequence[str]) -> str:
        """Return what a word that is no option is called, by the words before it; the last one may take several."""
        names = [str(own.metavar) for own in self._actions if not own.option_strings]
        valued = {name for name, own in self._option_string_actions.items() if own.nargs != 0}
        place = sum(not word.startswith("-") and option not in valued for option, word in pairwise(["", *before]))
        return names[min(place, len(names) - 1)]

    @property
    def _word(self) -> str:
        """What the first word that is no option is called."""
        return next(str(own.metavar) for own in self._actions if not own.option_strings)

    def error(self, message: str) -> NoReturn:
        """Turn a complaint into a sentence."""
        raise UserError(f"{in_our_words(message)}; see {self.prog} --help.")


def in_our_words(message: str) -> str:
    """Say what argparse says as the rest of this program would.

    >>> in_our_words("argument --jobs: invalid int value: 'x'")
    "`--jobs` must be a whole number, got 'x'"
    """
    for pattern, sentence in SAID.items():
        message = re.sub(pattern, sentence, message)
    return message


def check_new(path: Path, argument: str, *endings: str, kind: str = "file") -> Path:
    """Return the path of a file or folder that is to be written; one that is there, or cannot be made, is refused.

    Args:
        path: Where it will be.
        argument: That gives it, for messages, such as "--out".
        endings: What its name may end in; anything where there is none.
        kind: What it is, in words.

    Raises:
        UserError: If so.
    """
    above = path.absolute().parent
    if endings and path.suffix not in endings:
        raise UserError(f"`{argument}` must end in {' or '.join(endings)}, got {path.name}; rename it.")
    if (long := len(os.fsencode(path.name))) > NAME:
        raise UserError(
            f"`{argument}` must have a name of at most {NAME} bytes, got one of {long}; give a shorter one."
        )
    if not above.is_dir():
        raise UserError(f"`{argument}` must lie in a folder that is there, got {path}; make {path.parent} first.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"`{argument}` must lie in a folder that can be written to, but {above} cannot; name another one."
        )
    if os.path.lexists(path):
        raise UserError(f"`{argument}` must be a new {kind}, but {path} is there; delete it, or name another one.")
    return path


def check_out(path: Path, option: str, ending: str) -> None:
    """Refuse a file that is of another kind or cannot be written.

    Args:
        path: The file.
        option: That names it, for messages.
        ending: What its name must end in.

    Raises:
        UserError: If so.
    """
    if path.suffix != ending:
        raise UserError(
            f"`{option}` must name a file that ends in {ending}, got {path}; {path.with_suffix(ending)} would do."
        )
    if path.is_dir():
        raise UserError(f"`{option}` must name a file, but {path} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"`{option}` must name a file in an existing folder, got {path}; make {path.parent} first.")
    # In the folder too where the file is there: it is replaced whole.
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"`{option}` must name a file that can be written, but {path} cannot; name another one.")
