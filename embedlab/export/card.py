"""The model card: what was measured, on what, from what, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from embedlab import runs
from embedlab.export.folders import base_of
from embedlab.strategies.base import Embedder

__all__ = ["write_card"]

LICENCES: Final = {"smollm2-135m": "apache-2.0"}  # of decoders that ship
USE: Final = {
    "sentence-transformers": """\
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer("{name}")
    model.encode(["a text", "another"])
""",
    "transformers": """\
    from transformers import AutoModel, AutoTokenizer

    tokenizer, decoder = AutoTokenizer.from_pretrained("{name}"), AutoModel.from_pretrained("{name}")

A vector is the {pooling} of the last hidden states, without padding.
""",
    "peft": """\
    from peft import PeftModel
    from transformers import AutoModel

    decoder = PeftModel.from_pretrained(AutoModel.from_pretrained("{base}"), "{name}")

A vector is the {pooling} of the last hidden states, without padding.
""",
}

CONVERTED: Final = """\
The adapter is of embedlab's conversion of {name}, which lies in that folder of the machine where this was written, and nowhere
else; `embedlab export --format transformers` writes a folder of these weights with the adapter merged.
"""


def write_card(folder: Path, run: Path, kind: str, strategy: Embedder, name: str) -> None:
    """Write `README.md` into an exported folder, and the run's configuration beside it.

    Args:
        folder: The export.
        run: The run folder.
        kind: The format.
        strategy: What was exported.
        name: What the export is called where it is loaded from.
    """
    result, recipe, backbone = runs.read_result(run), strategy.recipe(), strategy.backbone
    assert result is not None, "only a finished run is exported"
    assert recipe is not None, "or nothing was written"
    assert backbone is not None, "or nothing was written"
    trained = result.get("schedule") is not None
    config = (run / runs.CONFIG).read_text(encoding="utf-8")
    (folder / "embedlab.yaml").write_text(config, encoding="utf-8")
    base = result["backbone"]["name"]
    base = Path(base).name if Path(base).exists() else base  # where it lay says nothing elsewhere
    head: dict[str, Any] = {"library_name": kind, "pipeline_tag": "sentence-similarity", "tags": ["embedlab"]}
    if "/" in base and not Path(base).exists():
        head["base_model"] = base
    if base in LICENCES:
        head["license"] = LICENCES[base]
    text = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {result['label']} of {base}\n",
        f"A text embedder: {result['strategy']} over the decoder {base} (hash {result['backbone']['sha256'][:12]}), "
        f"{'trained and ' if trained else ''}measured with embedlab.\n",
        USE[kind].format(name=name, pooling=recipe.pooling.__name__.replace("_", " "), base=base_of(backbone)),
        CONVERTED.format(name=base) if kind == "peft" and backbone.files.converted else "",
        _table(result),
        f"Seed {result['seed']}. Spearman and Pearson x 100. "
        f"{'The weights are those with the best validation score; test' if trained else 'Test'} sets were scored once.\n",
        _data(result),
        "Made by `embedlab fit -c embedlab.yaml` from the configuration in this folder.\n",
        "The licences of the decoder and of the data apply to what was made of them.\n",
        _notes(result),
    ]
    (folder / "README.md").write_text("\n".join(part for part in text if part), encoding="utf-8")


def _table(result: Mapping[str, Any]) -> str:
    lines = ["| set | pairs | Spearman | Pearson |", "|---|---:|---:|---:|"]
    for name, own in result["metrics"].items():
        if "ndcg@10" in own:
            lines.append(f"| {name} | {own['queries']} queries | nDCG@10 {100 * own['ndcg@10']:.2f} | - |")
            continue
        spearman, pearson = ("-" if own[key] is None else f"{100 * own[key]:.2f}" for key in ("spearman", "pearson"))
        lines.append(f"| {name} | {own['pairs']} | {spearman} | {pearson} |")
    return "\n".join(lines) + "\n"


def _data(result: Mapping[str, Any]) -> str:
    lines = ["| data | from | split | rows | hash |", "|---|---|---|---:|---|"]
    for name, own in result["data"].items():
        lines.append(f"| {name} | {own['path']} | {own['split']} | {own['rows']} | {own['sha256'][:12]} |")
    return "\n".join(lines) + "\n"


def _notes(result: Mapping[str, Any]) -> str:
    return "".join(f"- {note}\n" for note in result.get("notes") or [])
