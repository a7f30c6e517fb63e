"""Encode the texts of STS-B's test set: embedlab, and sentence-transformers in bfloat16 and by default."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor

from benchmarks.measure import apart, arguments, arithmetic, in_turn, lines, peak, show, stsb
from embedlab import pooling
from embedlab.backbone import Backbone

BATCH_SIZES = (16, 32, 64)


def plain(folder: Path, place: Path) -> Path:
    """Link a decoder's files into another folder, but for the chat template, which would be put round every text."""
    for path in folder.iterdir():
        if path.name == "tokenizer_config.json":
            settings = json.loads(path.read_text())
            settings.pop("chat_template", None)
            (place / path.name).write_text(json.dumps(settings))
        elif path.name != "chat_template.jinja":
            (place / path.name).symlink_to(path.resolve())
    return place


def peer(folder: Path, width: int, dtype: torch.dtype, device: str) -> SentenceTransformer:
    """Return sentence-transformers' model on the same weights."""
    body = Transformer(str(folder), model_kwargs={"dtype": dtype})
    return SentenceTransformer(modules=[body, Pooling(width, "mean")], device=device)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__)
    backbone = Backbone(options.backbone).to(options.device)
    backbone.load()
    first, second, _ = stsb(step=200 if options.small else 8 if options.device == "cpu" else 1)
    texts = [*first, *second]
    tokens = sum(map(len, backbone.tokenization.ids(list(dict.fromkeys(texts)))))
    with TemporaryDirectory() as place:
        folder = plain(backbone.files.folder, Path(place))
        half, default = (peer(folder, backbone.width, own, options.device) for own in (torch.bfloat16, torch.float32))

    def ours() -> Tensor:
        with torch.inference_mode():
            return backbone.pool(texts, pooling.mean)[:, 0]

    def theirs(model: SentenceTransformer, batch_size: int) -> Tensor:
        return torch.as_tensor(
            model.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        )

    sizes = BATCH_SIZES if options.device == "cpu" else (64, 128, 256, 512)
    exact = theirs(default, 32)
    off = apart(theirs(half, sizes[0]), exact)
    tried = in_turn({str(n): lambda n=n: theirs(half, n) for n in sizes}, 1, options.device)  # type: ignore[misc]
    best = min(sizes, key=lambda n: tried[str(n)])
    name = f"sentence-transformers, bfloat16, batch {best}"
    ways = {
        "embedlab": ours,
        name: lambda: theirs(half, best),
        "sentence-transformers by default (float32, 32)": lambda: theirs(default, 32),
    }
    seen = ", ".join(f"{n}: {own:.1f} s" for n, (own,) in tried.items())
    notes = {
        "embedlab": f"{tokens} tokens, {apart(ours(), exact):.1e} off float32",
        name: f"{off:.1e} off float32; batches tried, {seen}",
    }
    seconds = in_turn(ways, options.rounds, options.device)
    machine = peak(backbone.dtype, options.device)
    show(lines("encode STS-B", seconds, notes, arithmetic(backbone, tokens), machine), options.json, machine)


if __name__ == "__main__":
    main()
