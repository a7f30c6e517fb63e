"""`embedlab export`: a finished run as a folder that other libraries load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedlab import runs
from embedlab.arguments import Parser, check_new
from embedlab.errors import UserError

__all__ = ["main"]

KINDS = ("sentence-transformers", "transformers", "peft")


def main(arguments: Sequence[str]) -> int:
    """Run `embedlab export`.

    Args:
        arguments: What was typed after `export`.

    Returns:
        Exit status 0.

    Raises:
        UserError: If the format cannot hold what was trained, or the folder cannot be made.
    """
    parser = Parser(
        "embedlab export",
        "Write a finished run as a folder that other libraries load, without embedlab.",
        "example: embedlab export runs/demo/lora/seed-0 my-embedder",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder to write, which is not there yet")
    parser.add_argument("--format", choices=KINDS, default=KINDS[0], help="default: %(default)s")
    parser.add_argument("--push", metavar="HUB_ID", help="also upload it to the hub, such as me/my-embedder")
    parser.add_argument("--private", action="store_true", help="make a new repository on the hub private")
    parser.add_argument("--backbone", metavar="NAME", help="where the run's decoder lies now")
    parser.add_argument(
        "--allow", metavar="MODULE", action="append", default=[], help="module of yours that the run names"
    )
    options = parser.read(arguments)
    folder = check_new(options.folder, "DIR", kind="folder")
    if options.private and options.push is None:
        raise UserError("`--private` must come with --push HUB_ID, as only the hub has owners, got none; leave it out.")
    if options.push is not None and options.push.count("/") != 1:
        raise UserError(f"`--push` must be an id of the hub, OWNER/NAME, got {options.push!r}.")

    from embedlab.backbone.pretrained import Pretrained
    from embedlab.export.card import write_card
    from embedlab.export.folders import write
    from embedlab.strategies.base import Embedder
    from embedlab.use.loading import class_of, load

    try:
        kind = class_of(options.run, options.allow)  # what no format holds is refused before a decoder is loaded
    except UserError as error:
        raise UserError(str(error).replace("`what`", "`RUN`")) from error
    if not issubclass(kind, Embedder):
        raise UserError(
            f"`RUN` must be of a strategy that embeds, but {kind.__qualname__} scores pairs, which no such folder holds; use the "
            "run with embedlab."
        )
    if kind.recipe is Embedder.recipe:
        raise UserError(
            f"`RUN` must be of a strategy whose vectors are pooled states of its decoder, as other libraries make them, but "
            f"{kind.__qualname__} makes its own; use the run with embedlab."
        )
    decoder = options.backbone or _decoder_of(options.run)
    if options.push is not None and options.format == "peft" and Pretrained(decoder, None).converted:
        raise UserError(
            f"`--format` peft with --push needs a decoder that others can load, but {decoder} is a GGUF file, whose weights "
            "embedlab has converted on this machine; use --format transformers, which carries them with the adapter merged."
        )
    strategy = load(options.run, backbone=options.backbone, device="cpu", dtype="float32", allow=options.allow).strategy
    assert isinstance(strategy, Embedder)
    name = options.push or str(folder)
    write(
        strategy,
        folder,
        options.format,
        lambda unfinished: write_card(unfinished, options.run, options.format, strategy, name),
    )
    print(f"{options.format}: {folder}")  # noqa: T201  # the command's answer
    if options.push is not None:
        print(f"pushed: {_push(folder, options.push, options.private)}")  # noqa: T201
    return 0


def _decoder_of(run: Path) -> str:
    """Return the name of the decoder that a finished run was made with."""
    result = runs.read_result(run)
    assert result is not None, "its class was found, which only a finished run has"
    return str(result["backbone"]["name"])


def _push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder; return where it is now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of embedlab"))
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"`--push` must reach {name} on the hub with a token that may write, but it does not ({reason}); log in by `hf auth "
            f"login`, and upload {folder}, which is written, by `hf upload {name} {folder}{' --private' if private else ''}`, or "
            "delete it before the same command."
        ) from error
