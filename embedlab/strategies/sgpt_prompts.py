r"""Prompts of the SGPT cross-encoder, quoted to the letter from the authors' notebooks.

`{}` is where the document goes; the query follows the prompt directly. One-shot prompts begin with an example,
a document and a query that belongs to it. Yes-or-no prompts have a second `{}` for the query and ask for an answer.

A blank before a document, query or answer (as in A, L, M and the Quora prompts) is moved to its front, where tokenizers
expect it; at the end of the prompt it would be a token of its own, which does not occur in running text. This makes M
equal to L.

Differs from the paper: the authors took their one-shot example from the test judgements; here the user gives one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["PROMPTS", "Prompt", "Segments"]

_SAME: Final = "Documents are searched to find matches with the same content.\n"

_BOT: Final = (
    'An intelligent, helpful bot is given. The bot responds "Yes" if the document is a fit to the query and "No" '
    "otherwise.\n###\n"
)


@dataclass(frozen=True)
class Segments:
    """A prompt in the pieces that are tokenized separately, in order.

    Attributes:
        before: Instruction, example and whatever else comes before the document.
        document: Blanks put before the document.
        after: Text between document and query.
        query: Blanks put before the query.
        closing: Text after the query of a yes-or-no prompt.
        answers: The answers for a matching and a non-matching pair; None where the query itself is predicted.
    """

    before: str
    document: str
    after: str
    query: str
    closing: str
    answers: tuple[str, str] | None


@dataclass(frozen=True)
class Prompt:
    """A prompt: text with a place for a document, followed by a query.

    Attributes:
        template: Text with one `{}` for the document; with `answers`, a second one for the query.
        shot: Text with `{}` for the example's document and `{}` for its query, put first; None without example.
        answers: The answers for a matching and a non-matching pair; None where the query itself is predicted.
    """

    template: str
    shot: str | None = None
    answers: tuple[str, str] | None = None

    def segments(self, example: tuple[str, str] | None = None) -> Segments:
        """Cut the prompt into segments, the example filled in.

        >>> Prompt("Title: {} is ").segments()
        Segments(before='Title:', document=' ', after=' is', query=' ', closing='', answers=None)
        """
        before, after, *rest = self.template.split("{}")
        if self.shot is not None and example is not None:
            opening, middle, end = self.shot.split("{}")
            before = f"{opening}{example[0]}{middle}{example[1]}{end}{before}"
        (before, document), (after, query), (closing, answer) = map(_blank, (before, after, "".join(rest)))
        answers = None if self.answers is None else (answer + self.answers[0], answer + self.answers[1])
        return Segments(before, document, after, query, closing, answers)


def _blank(text: str) -> tuple[str, str]:
    """Split off the blanks at the end of a text."""
    bare = text.rstrip(" ")
    return bare, text[len(bare) :]


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
        "\nDocument: {}\nQuery: {}\nBot: ", shot=_BOT + "Document: {}\nQuery: {}\nBot: Yes", answers=("Yes", "No")
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
