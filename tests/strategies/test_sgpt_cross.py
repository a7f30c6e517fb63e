"""The cross-encoder's prompts token for token, what is cut, and which side is which."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from embedlab.backbone import Backbone
from embedlab.errors import UserError
from embedlab.strategies.sgpt_cross import SGPTCrossEncoder, mean, ratio, total
from embedlab.strategies.sgpt_prompts import PROMPTS
from tests.conftest import TEXTS, byte_tokenizer

SAME = "Documents are searched to find matches with the same content.\n"
BOT = (
    'An intelligent, helpful bot is given. The bot responds "Yes" if the document is a fit to the query and "No" '
    "otherwise.\n###\n"
)
EXAMPLE = ("Cats purr.", "What purrs?")
# Each prompt by hand: before the document, the document, between, the query, after the query.
BY_HAND = {
    "A": ("", "doc", "", " query", ""),
    "B": ("", "doc", "\n", "query", ""),
    "C": ("Document:\n", "doc", "\n\nQuery:\n", "query", ""),
    "D": ("Body:", "doc", "\n\nTitle:\n", "query", ""),
    "E": ("selected document:\n", "doc", "\n\nrelevant query:\n", "query", ""),
    "F": ("The selected text is:\n", "doc", "\n\nThe relevant query is:\n", "query", ""),
    "G": (SAME + 'The document "', "doc", '" is a good search result for "', "query", ""),
    "H": (SAME + 'Document: "', "doc", '"\n\nThe above document is a good match for the query: "', "query", ""),
    "I": (
        "# Get matching document and query with the same content\nget_document()\n",
        "doc",
        '\nget_query_matching_document()\n"',
        "query",
        "",
    ),
    "J": (SAME + "Document:\nCats purr.\nQuery:\nWhat purrs?\nDocument:\n", "doc", "\nQuery:\n", "query", ""),
    "K": ("Document:\nCats purr.\nQuery:\nWhat purrs?\nDocument:\n", "doc", "\nQuery:\n", "query", ""),
    "L": (
        BOT + "Document: Cats purr.\nQuery: What purrs?\nBot: Yes\nDocument:",
        " doc",
        "\nQuery:",
        " query",
        "\nBot:",
    ),
    "M": (
        BOT + "Document: Cats purr.\nQuery: What purrs?\nBot: Yes\nDocument:",
        " doc",
        "\nQuery:",
        " query",
        "\nBot:",
    ),
    "quoraA": (
        'Questions are searched to find matches with the same content.\nThe question "',
        "doc",
        '" is a good search result for "',
        "query",
        "",
    ),
    "quoraB": (
        'Below are two similar questions asking the same thing.\nThe question "',
        "doc",
        '" is similar to "',
        "query",
        "",
    ),
    "quoraC": ("These two questions are the same: 1.", " doc", " 2.", "query", ""),
    "quoraD": ("Question Body:", " doc", " Question Title:", "query", ""),
    "quoraE": (
        "Question Body: Cats purr. Question Title: What purrs?\nQuestion Body:",
        " doc",
        " Question Title:",
        "query",
        "",
    ),
    "sentence": ('The sentence "', "doc", '" means the same as "', "query", ""),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Callable[[str], Path]) -> Path:
    """Return a decoder whose tokenizer joins a blank with the letter that follows, as those of GPT do."""
    place = Path(shutil.copytree(decoder_folder("llama"), tmp_path_factory.mktemp("own") / "decoder"))
    vocabulary = byte_tokenizer().get_vocab()
    merges = [("\u0120", letter) for letter in "dqaY"]
    for (first, second), seldom in zip(merges, sorted(vocabulary, key=lambda sign: vocabulary[sign])[-4:], strict=True):
        vocabulary[first + second] = vocabulary.pop(seldom)  # the decoder has no more ids
    backend = byte_tokenizer().backend_tokenizer
    backend.model = models.BPE(vocabulary, merges)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>").save_pretrained(place)
    return place


def build(folder: Path, prompt: str, **options: Any) -> SGPTCrossEncoder:
    example = EXAMPLE if prompt in PROMPTS and PROMPTS[prompt].shot is not None else None
    max_length = options.pop("max_length", None)
    backbone = Backbone(str(folder), dtype="float32", max_length=max_length)
    strategy = SGPTCrossEncoder(backbone, prompt, example=example, **options)
    strategy.configure_model()
    return strategy


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """Return a list of the contexts and targets that the decoder is asked about."""
    seen: list[tuple[list[int], list[int]]] = []

    def answer(_self: Backbone, contexts: Sequence[list[int]], targets: Sequence[list[int]]) -> list[Tensor]:
        seen.extend((list(context), list(target)) for context, target in zip(contexts, targets, strict=True))
        return [torch.full((len(target),), -1.0) for target in targets]

    monkeypatch.setattr(Backbone, "log_probabilities", answer)
    return seen


def test_every_prompt_is_written_down_by_hand() -> None:
    assert set(BY_HAND) == set(PROMPTS)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_that_of_the_authors_token_for_token(
    folder: Path, prompt: str, asked: list[tuple[list[int], list[int]]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    strategy = build(folder, prompt)
    strategy.score(["query"], ["doc"])
    before, document, between, query, closing = (tokenizer(part)["input_ids"] for part in BY_HAND[prompt])
    if PROMPTS[prompt].answers is None:
        assert asked == [([*before, *document, *between], query)]
    else:
        context = [*before, *document, *between, *query, *closing]
        assert asked == [(context, tokenizer(answer)["input_ids"]) for answer in (" Yes", " No")]
    blank = tokenizer(" ")["input_ids"][0]
    joined = tokenizer(BY_HAND[prompt][0])["input_ids"]
    assert (asked[0][0] + asked[0][1]).count(blank) == joined.count(blank) + between.count(blank), "no lone blank"
    template = (PROMPTS[prompt].shot or "").replace("{}", "{0}", 1).replace("{}", "{1}").format(*EXAMPLE)
    filled = template + PROMPTS[prompt].template.replace("{}", "doc", 1).replace("{}", "query")
    whole = filled if PROMPTS[prompt].answers else filled + "query"
    assert "".join(BY_HAND[prompt]) == whole.removesuffix(" ")


def test_an_empty_document_leaves_no_blank_behind(folder: Path, asked: list[tuple[list[int], list[int]]]) -> None:
    build(folder, "quoraC", evidence=ratio).score(["query"], ["doc"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    empty = [*tokenizer("These two questions are the same: 1.")["input_ids"], *tokenizer(" 2.")["input_ids"]]
    assert asked[1] == (empty, tokenizer("query")["input_ids"])


@pytest.mark.parametrize("prompt", ["G", "L", "quoraC"])
@pytest.mark.parametrize("cut", ["end", "beginning"])
def test_only_the_document_is_cut_and_it_is_counted(
    folder: Path, prompt: str, cut: str, asked: list[tuple[list[int], list[int]]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before, _, between, query, closing = (tokenizer(part)["input_ids"] for part in BY_HAND[prompt])
    strategy = build(folder, prompt, cut=cut, max_length=320)
    document = "".join(chr(97 + i % 26) for i in range(600))
    strategy.score(["query", "query"], [document, "doc"])
    context, target = asked[0]
    answers = PROMPTS[prompt].answers is not None
    assert len(context) + len(tokenizer(" Yes")["input_ids"] if answers else target) == 321
    tail = [*between, *query, *closing] if answers else between
    assert context[: len(before)] == before
    assert context[-len(tail) :] == tail
    own = context[len(before) : -len(tail)]
    whole = tokenizer((" " if BY_HAND[prompt][1] == " doc" else "") + document)["input_ids"]
    assert own == (whole[: len(own)] if cut == "end" else whole[-len(own) :])
    assert f"cut to the window of 320 tokens: 1 documents at the {cut}" in strategy.notes


def test_an_over_long_query_is_cut_and_counted_too(folder: Path, asked: list[tuple[list[int], list[int]]]) -> None:
    strategy = build(folder, "C", max_length=60)
    strategy.score(["q" * 100], ["doc"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert asked[0][0] == tokenizer("Document:\nd\n\nQuery:\n")["input_ids"], "one token of the document is left"
    assert len(asked[0][0]) + len(asked[0][1]) == 61
    assert strategy.notes[-1] == "cut to the window of 60 tokens: 1 documents at the end, 1 queries at the end"
    with pytest.raises(UserError, match="`prompt` must leave room for a document and a query in the window of 19"):
        build(folder, "C", max_length=19).score(["q"], ["d"])


def test_a_long_pair_is_scored_by_the_decoder_itself(folder: Path) -> None:
    for prompt in ("L", "G"):
        strategy = build(folder, prompt, max_length=400)
        assert strategy.score(["What barks?"], ["word " * 500]).isfinite().all()


def test_yes_or_no_compares_only_the_two_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([torch.tensor([-1.0]), torch.tensor([-0.5]), torch.tensor([-2.0]), torch.tensor([-3.0])])
    monkeypatch.setattr(Backbone, "log_probabilities", lambda _self, c, _t: [next(given) for _ in c])
    scores = build(folder, "L").score(["a", "b"], ["c", "d"])
    expected = [-1 - torch.tensor([-1.0, -2.0]).logsumexp(0), -0.5 - torch.tensor([-0.5, -3.0]).logsumexp(0)]
    assert scores.tolist() == pytest.approx([float(own) for own in expected])


def test_one_direction_predicts_the_query_from_the_document(folder: Path) -> None:
    """By plain arithmetic on the logits of one text."""
    strategy = build(folder, "C")
    query, document = TEXTS[0], TEXTS[1]
    found = strategy.score([query], [document]).item()
    tokenizer = strategy.backbone.tokenizer
    context = tokenizer(f"Document:\n{document}\n\nQuery:\n")["input_ids"]
    target = tokenizer(query)["input_ids"]
    ids = torch.tensor([context + target])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(ids).logits[0].log_softmax(-1)
    expected = sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(target))
    assert found == pytest.approx(expected, rel=1e-4)
    both = build(folder, "C", both=True).score([query], [document]).item()
    assert both == pytest.approx((found + strategy.score([document], [query]).item()) / 2, rel=1e-4)


def test_the_class_is_the_published_method_and_notes_tell_what_is_not(folder: Path) -> None:
    cut = "differs from the paper: cut end instead of beginning (their code)"
    apart = "differs from the paper: prompt, document and query are tokenized apart, not as one text"
    assert SGPTCrossEncoder(Backbone(str(folder))).notes == [cut, apart]
    assert SGPTCrossEncoder(Backbone(str(folder)), evidence=total, cut="beginning").notes == [apart]
    ours = SGPTCrossEncoder(Backbone(str(folder)), "sentence", ratio, both=True).notes
    assert ours[:3] == [
        "differs from the paper: prompt sentence instead of G (section 3)",
        "differs from the paper: evidence ratio instead of total (section 3)",
        "differs from the paper: both true instead of false (section 3)",
    ]
    assert (
        SGPTCrossEncoder(Backbone(str(folder)), evidence=mean).notes[0].startswith("differs from the paper: evidence")
    )
