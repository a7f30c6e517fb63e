"""Which line of a user's own module is to blame: it cannot be imported, or it ends the program."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from traceback import FrameSummary, extract_tb
from typing import Final

import embedlab
from embedlab.errors import UserError

__all__ = ["exit_fault", "import_fault", "no_module"]

DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
PACKAGE: Final = Path(embedlab.__file__).parent
LIBRARIES: Final[tuple[str, ...]] = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
GUARD: Final = 'put what ends it under `if __name__ == "__main__":`, or take it out'


def import_fault(paths: Iterable[str]) -> str | None:
    """Return a sentence on the first dotted path whose module is there, but fails while it is imported.

    Args:
        paths: What may be the dotted path of a class or function; other texts are skipped.

    Returns:
        The sentence, with file, line and cause; None where every module can be imported or is not there.
    """
    for path in paths:
        module = path.rpartition(".")[0]
        if not DOTTED.fullmatch(path) or Path(path).exists():  # such as the data file `train.csv`
            continue
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                return _sentence(path, error)
        except (Exception, SystemExit) as error:
            return _sentence(path, error)
    return None


def no_module(name: str) -> str:
    """Say that there is no such module, where it was looked for, and what to do."""
    if "." in name:  # the package of it was found
        return f"there is no module '{name}'"
    return (
        f"there is no module '{name}' in the working directory ({Path.cwd()}) or on PYTHONPATH; start where {name}.py is, or "
        "put its folder on PYTHONPATH"
    )


def exit_fault(error: SystemExit) -> str | None:
    """Return a sentence on what ended the program, where that was code of the user's; None where it was not."""
    frames = list(_own(error))
    if not frames:
        return None
    module = Path(frames[-1].filename).stem
    way = GUARD if any(own.name == "<module>" for own in frames) else "raise an error instead"
    return f"`{module}` must not end the program, but {_place(frames[-1])} does ({_said(error)}); {way}."


def _sentence(path: str, error: BaseException) -> str:
    if isinstance(error, UserError):  # says all by itself: what a strategy promises was broken
        return str(error)
    must = f"`{path}` must be in a module that can be imported"
    if isinstance(error, SyntaxError) and error.filename is not None:
        where = f"{_shown(error.filename)}{f', line {error.lineno},' if error.lineno else ''}"
        return f"{must}, but {where} is no Python ({error.msg}); correct it."
    frames = [*_own(error)] or [own for own in extract_tb(error.__traceback__) if not own.filename.startswith("<")]
    if isinstance(error, SystemExit):
        return f"{must}, but {_place(frames[-1])} ends the program ({_said(error)}); {GUARD}."
    return f"{must}, but {_place(frames[-1])} raises {_said(error)}; correct it."


def _own(error: BaseException) -> Iterator[FrameSummary]:
    """Yield the places that an error went through in files that are no library's and not this program's."""
    for frame in extract_tb(error.__traceback__):
        file = Path(frame.filename)
        libraries = (str(PACKAGE), *LIBRARIES)
        if not frame.filename.startswith("<") and not any(file.is_relative_to(own) for own in libraries):
            yield frame


def _place(frame: FrameSummary) -> str:
    return f"{_shown(frame.filename)}, line {frame.lineno},"


def _shown(file: str) -> str:
    """Return a file as the user would name it: relative where it is below the working directory."""
    return str(Path(file).relative_to(Path.cwd())) if Path(file).is_relative_to(Path.cwd()) else file


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ").rstrip(".")
