r"""Prompts of the SGPT cross-encoder, quoted to the letter from the authors' notebooks.

`{}` is where the document goes; the query follows the prompt directly. One-shot prompts begin with an example,
a document and a query that belongs to it. Yes-or-no prompts have a second `{}` for the query and ask for an answer.

Differs from the paper: prompts A and M end in a blank, which alone would be an odd token; it is moved to the front
of what follows, where tokenizers expect it (which makes M the same as L). The authors took their one-shot example
from the test judgements; here the user gives one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["PROMPTS", "Prompt"]

_SAME: Final = "Documents are searched to find matches with the same content.\n"

_BOT: Final = (
    'An intelligent, helpful bot is given. The bot responds "Yes" if the document is a fit to the query and "No" '
    "otherwise.\n###\n"
)


@dataclass(frozen=True)
class Prompt:
    """What stands around a document before a query.

    Attributes:
        template: Text with one `{}` for the document; with `answers`, a second one for the query.
        shot: Text with `{}` for the example's document and `{}` for its query, put first; None without example.
        answers: What is answered where document and query belong together, and where they do not; None where the
            query itself is what is predicted.
    """

    template: str
    shot: str | None = None
    answers: tuple[str, str] | None = None

    def parts(self, example: tuple[str, str] | None = None) -> tuple[str, str, str]:
        """Return what comes before the document, after it, and after the query, the example filled in."""
        before, after, *rest = self.template.split("{}")
        if self.shot is not None and example is not None:
            opening, middle, closing = self.shot.split("{}")
            before = f"{opening}{example[0]}{middle}{example[1]}{closing}{before}"
        return before, after, "".join(rest)


PROMPTS: Final = {
    "A": Prompt("{} "),
    "B": Prompt("{}\n"),
    "C": Prompt("Document:\n{}\n\nQuery:\n"),
    "D": Prompt("Body:{}\n\nTitle:\n"),
    "E": Prompt("selected document:\n{}\n\nrelevant query:\n"),
    "F": Prompt("The selected text is:\n{}\n\nThe relevant query is:\n"),
    "G": Prompt(_SAME + 'The document "{}" is a good search result for "'),
    "H": Prompt(_SAME + 'Document: "{}"\n\nThe above document is a good match for the query: "'),
    "I": Prompt(
        '# Get matching document and query with the same content\nget_document()\n{}\nget_query_matching_document()\n"'
    ),
    "J": Prompt("Document:\n{}\nQuery:\n", shot=_SAME + "Document:\n{}\nQuery:\n{}\n"),
    "K": Prompt("Document:\n{}\nQuery:\n", shot="Document:\n{}\nQuery:\n{}\n"),
    "L": Prompt(
        "\nDocument: {}\nQuery: {}\nBot:", shot=_BOT + "Document: {}\nQuery: {}\nBot: Yes", answers=(" Yes", " No")
    ),
    "M": Prompt(
        "\nDocument: {}\nQuery: {}\nBot:", shot=_BOT + "Document: {}\nQuery: {}\nBot: Yes", answers=(" Yes", " No")
    ),
    "quoraA": Prompt(
        'Questions are searched to find matches with the same content.\nThe question "{}" is a good search result for "'
    ),
    "quoraB": Prompt('Below are two similar questions asking the same thing.\nThe question "{}" is similar to "'),
    "quoraC": Prompt("These two questions are the same: 1. {} 2."),
    "quoraD": Prompt("Question Body: {} Question Title:"),
    "quoraE": Prompt("Question Body: {} Question Title:", shot="Question Body: {} Question Title: {}\n"),
    # Ours, for sentences instead of documents; chosen on STS-B validation (docs/tried.md).
    "sentence": Prompt('The sentence "{}" means the same as "'),
}
