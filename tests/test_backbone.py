"""The decoder reads every text as if it were alone, whatever the architecture."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from embedlab import pooling
from embedlab.backbone import FINAL, Backbone
from embedlab.backbone.pretrained import decoder_sha256, longest_text
from embedlab.backbone.probe import prove
from embedlab.backbone.reader import Reader
from embedlab.backbone.tuning import BitFit, Frozen, Full, LoRA, Tuning
from embedlab.errors import UserError
from embedlab.packing import PackedBatch, pack
from tests.conftest import ARCHITECTURES, ODD, TEXTS, byte_tokenizer

Folder = Callable[[str], Path]
ALL = ("packed", "padded", "one text at a time")
UNPACKED = {"gpt_neo", "gptj", "bloom"}  # transformers lets nobody replace their attention


def loaded(folder: Path | str, tuning: Tuning | None = None, head: bool = False, **options: Any) -> Backbone:
    """Return a backbone in float32, loaded."""
    backbone = Backbone(str(folder), **{"dtype": "float32", **options})
    backbone.load(tuning or Frozen(), head)
    return backbone


def states_of(backbone: Backbone, texts: list[str], layers: list[int | str]) -> list[Tensor]:
    """Return the states of each text at some layers, (T, len(layers), D) each, read in one batch."""
    if backbone.decoder is None:
        backbone.load()
    ids = backbone.tokenization.ids(texts)
    tokens = pack(ids, backbone.tokenization.content)
    found: dict[int | str, Tensor] = {}
    with torch.no_grad():
        backbone.reader.run(tokens, layers, lambda layer, states: found.update({layer: states.float()}))
    return list(torch.stack([found[layer] for layer in layers], 1).split(tokens.lengths))


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def alone(folder: Path, texts: list[str]) -> list[Tensor]:
    """Run transformers' own implementation on one text at a time: all block outputs and the final norm's."""
    backbone = Backbone(str(folder), dtype="float32")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == backbone.num_layers)
    results = []
    for text in texts:
        seen: list[Tensor] = []
        hooks = [blocks[0].register_forward_pre_hook(lambda _, inputs, s=seen: s.append(inputs[0]))]
        hooks += [
            block.register_forward_hook(lambda _, __, out, s=seen: s.append(out[0] if isinstance(out, tuple) else out))
            for block in blocks
        ]
        with torch.no_grad():
            final = model(torch.tensor(backbone.tokenization.ids([text])), use_cache=False).last_hidden_state
        for hook in hooks:
            hook.remove()
        results.append(torch.stack([state[0] for state in [*seen, final]], 1))
    return results


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape
        assert (own - other).abs().max() <= 1e-5 * other.abs().max().clamp_min(1.0)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_states_are_those_of_the_text_alone(architecture: str, decoder_folder: Folder, packed: bool, side: str) -> None:
    folder = decoder_folder(architecture)
    backbone = Backbone(str(folder), dtype="float32", packed=packed, padding_side=side)
    backbone.load(Frozen())
    assert (backbone.reader.way == "packed") == (packed and architecture not in UNPACKED)
    layers = [*range(backbone.num_layers + 1), FINAL]
    assert_same(states_of(backbone, TEXTS, layers), alone(folder, TEXTS))
    backwards = states_of(backbone, TEXTS[::-1], layers)[::-1]
    assert_same(backwards, alone(folder, TEXTS))
    assert_same(states_of(backbone, TEXTS[2:5], layers), alone(folder, TEXTS[2:5]))


@pytest.mark.parametrize("tuning", [Full(), LoRA(rank=2), BitFit()])
@pytest.mark.parametrize("packed", [True, False])
def test_checkpointed_activations_change_no_gradient_and_take_less_memory(
    decoder_folder: Folder, tuning: Tuning, packed: bool
) -> None:
    gradients, kept = [], []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        own = {"dtype": "float32", "packed": packed, "checkpoint_activations": checkpoint}
        backbone = Backbone(str(decoder_folder("llama")), **own)
        backbone.load(copy.deepcopy(tuning))
        backbone.train()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.numel()) or x, lambda x: x):
            loss = backbone.pool(TEXTS, pooling.mean).square().sum()
        loss.backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3
    assert gradients[0].keys() == gradients[1].keys()
    assert any(own.abs().max() > 0 for own in gradients[0].values())
    for name, own in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], own, atol=1e-6, rtol=1e-5)


def test_a_state_does_not_see_later_tokens(architecture: str, decoder_folder: Folder) -> None:
    backbone = Backbone(str(decoder_folder(architecture)), dtype="float32")
    layers = list(range(backbone.num_layers + 1))
    one, other = states_of(backbone, ["A man plays x", "A man plays y"], layers)
    assert torch.allclose(one[:-1], other[:-1], atol=1e-5)
    assert not torch.allclose(one[-1], other[-1], atol=1e-2)
    # ... and does see earlier ones, or the test above would prove nothing.
    one, other = states_of(backbone, ["b man plays x", "A man plays x"], layers)
    assert not torch.allclose(one[3, 1:], other[3, 1:], atol=1e-2)


def test_the_last_block_is_read_before_the_final_norm(decoder_folder: Folder) -> None:
    backbone = Backbone(str(decoder_folder("llama")), dtype="float32")
    (states,) = states_of(backbone, TEXTS[:1], [backbone.num_layers, FINAL])
    normed = backbone.decoder.norm(states[:, 0])
    assert torch.allclose(normed, states[:, 1], atol=1e-6)
    assert not torch.allclose(states[:, 0], states[:, 1], atol=1e-2)


def test_read_keeps_order_and_reads_equal_texts_once(decoder_folder: Folder) -> None:
    backbone = loaded(decoder_folder("qwen2"), tokens_per_pass=40)
    seen: list[PackedBatch] = []

    def watched(states: Tensor, tokens: PackedBatch) -> Tensor:
        seen.append(tokens)
        return pooling.weighted_mean(states, tokens)

    texts = [*TEXTS, TEXTS[0], TEXTS[3]]
    vectors = backbone.pool(texts, watched)[:, 0]
    singles = torch.cat([backbone.pool([text], pooling.weighted_mean)[:, 0] for text in texts])
    assert torch.allclose(vectors, singles, atol=1e-5)
    assert sum(len(tokens) for tokens in seen) == len(TEXTS)
    assert all(len(t.ids) <= 40 or len(t) == 1 for t in seen)


def test_blocks_above_the_last_one_wanted_are_not_run(decoder_folder: Folder) -> None:
    backbone = Backbone(str(decoder_folder("llama")), dtype="float32")
    backbone.load(Frozen())
    ran: list[int] = []
    for number, block in enumerate(backbone.reader.blocks, 1):
        block.register_forward_hook(lambda *_, n=number: ran.append(n))
    full = backbone.pool(TEXTS, pooling.mean, [1, FINAL])
    assert ran == [1, 2, 3]
    ran.clear()
    assert torch.equal(backbone.pool(TEXTS, pooling.mean, [1])[:, 0], full[:, 0])
    assert ran == [1]


def test_packed_gradients_are_those_of_padding(decoder_folder: Folder) -> None:
    gradients = []
    for packed in (True, False):
        backbone = Backbone(str(decoder_folder("mistral")), dtype="float32", packed=packed)
        backbone.load(Full())
        backbone.pool(TEXTS, pooling.weighted_mean).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in backbone.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[1].norm()


def test_brackets_are_never_cut_and_never_merge(decoder_folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    backbone = Backbone(str(decoder_folder("llama")), dtype="float32", max_length=20)
    opening, closing = backbone.tokenizer.convert_tokens_to_ids(["[", "]"])
    ids = backbone.tokenization.ids(["word " * 10_000, "]abc["], [opening], [closing])
    assert "texts longer than 20 tokens were cut at the end, 1 so far" in caplog.text
    assert len(ids[0]) == 20
    assert all(own[0] == opening and own[-1] == closing for own in ids)
    assert len(ids[1]) == 5 + 2
    assert backbone.tokenization.texts_cut == 1


def test_special_strings_in_a_text_are_plain_text(decoder_folder: Folder) -> None:
    backbone = Backbone(str(decoder_folder("llama")))
    (ids,) = backbone.tokenization.ids(["</s>"])
    assert len(ids) == 4
    assert backbone.tokenizer.eos_token_id not in ids


def test_log_probabilities_are_those_of_the_language_model(architecture: str, decoder_folder: Folder) -> None:
    folder = decoder_folder(architecture)
    backbone = Backbone(str(folder), dtype="float32", tokens_per_pass=60)
    backbone.load(Frozen(), head=True)
    # Alone, then as a few documents with many queries after one instruction, one of them of a single token.
    contexts, targets = backbone.tokenization.ids(TEXTS), backbone.tokenization.ids(TEXTS[::-1])
    with torch.no_grad():
        found = backbone.log_probabilities(contexts, targets)
        for own in backbone.tokenization.ids(["Read: ", "Read: a hen lays eggs", "Read: birds sing"]):
            asked = backbone.tokenization.ids([*TEXTS, "x"])
            contexts += [own] * len(asked)
            targets += asked
        found += backbone.log_probabilities(contexts[len(TEXTS) :], targets[len(TEXTS) :])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for context, target, own in zip(contexts, targets, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([context + target])).logits[0].log_softmax(-1)
        expected = [logits[len(context) - 1 + i, token].item() for i, token in enumerate(target)]
        assert own.tolist() == pytest.approx(expected, abs=1e-3, rel=1e-4)


# The probe --------------------------------------------------------------------------------------------------

WAYS = {"lfm2": "padded", "gpt_oss": "padded", "granitemoehybrid": "padded", "gemma2": "padded", "llama4": "padded"}
WAYS |= {"cohere2": "packed", "granite": "packed"}


@pytest.mark.parametrize("odd", sorted(ODD))
def test_decoders_with_parts_of_their_own_are_read_as_their_class_reads(odd: str, decoder_folder: Folder) -> None:
    folder = decoder_folder(odd)
    backbone = loaded(folder, head=True, tokens_per_pass=60)
    assert backbone.reader.way == WAYS[odd]
    layers = [*range(backbone.num_layers + 1), FINAL]
    assert_same(states_of(backbone, TEXTS, layers), alone(folder, TEXTS))
    assert_same(states_of(backbone, TEXTS[::-1], layers)[::-1], alone(folder, TEXTS))
    test_log_probabilities_are_those_of_the_language_model(odd, decoder_folder)


def test_notes_say_how_texts_are_read_and_why(decoder_folder: Folder) -> None:
    assert loaded(decoder_folder("llama")).notes == []
    assert loaded(decoder_folder("llama"), packed=False).notes == []
    (note,) = loaded(decoder_folder("gpt_oss")).notes
    assert (
        note
        == "texts are read padded: not packed, as its attention takes `s_aux`, which packed attention does not know"
    )
    (note,) = loaded(decoder_folder("gptj")).notes
    assert note == "texts are read padded: not packed, as its class does not let its attention be replaced"


def leak(reader: Reader, ways: tuple[str, ...], above: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let some ways of reading move the states of a block by what the token before has, whichever text it is of."""
    run = reader.run

    def moved(tokens: PackedBatch, layers: Any, see: Callable[[Any, Tensor], None]) -> None:
        def leaky(layer: Any, states: Tensor) -> None:
            wrong = reader.way in ways and layer == above
            see(layer, states + 1e-3 * states.roll(1, 0) if wrong else states)

        run(tokens, layers, leaky)

    monkeypatch.setattr(reader, "run", moved)


@pytest.mark.parametrize(
    ("wrong", "way"),
    [((), "packed"), (("packed",), "padded"), (("packed", "padded"), "one text at a time"), (ALL, None)],
)
def test_the_first_way_that_is_right_is_chosen(
    wrong: tuple[str, ...], way: str | None, decoder_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = loaded(decoder_folder("qwen3")).reader
    reader.use("one text at a time")
    leak(reader, wrong, 2, monkeypatch)
    proof = prove(reader, ALL, 260, {0, 1, 2}, False)
    assert proof.way == way
    assert list(proof.reasons) == list(wrong)
    assert all(re.fullmatch(r"states are off by .* of their size", why) for why in proof.reasons.values())


@pytest.mark.parametrize(("off", "way"), [(5e-5, "packed"), (2e-4, "padded")])
def test_rounding_is_no_reason(off: float, way: str, decoder_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some processors a state of the default decoder is off by 4e-5 of the largest, where the order of sums is another."""
    reader = loaded(decoder_folder("llama")).reader
    reader.use("one text at a time")
    run = reader.run

    def rounded(tokens: PackedBatch, layers: Any, see: Callable[[Any, Tensor], None]) -> None:
        def one(layer: Any, states: Tensor) -> None:
            if reader.way == "packed" and layer == 2:
                states = states.clone()
                states[5, 0] += off * states.abs().max()
            see(layer, states)

        run(tokens, layers, one)

    monkeypatch.setattr(reader, "run", rounded)
    assert prove(reader, ALL, 260, {0, 1, 2}, False).way == way


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_one_text_at_a_time_gives_the_same(architecture: str, decoder_folder: Folder) -> None:
    folder = decoder_folder(architecture)
    backbone = loaded(folder, head=True)
    ids = backbone.tokenization.ids(TEXTS)
    packed = backbone.log_probabilities(ids, ids[::-1])
    backbone.reader.use("one text at a time")
    assert_same(
        states_of(backbone, TEXTS, [0, 1, backbone.num_layers, FINAL]),
        [a[:, [0, 1, -2, -1]] for a in alone(folder, TEXTS)],
    )
    for own, other in zip(backbone.log_probabilities(ids, ids[::-1]), packed, strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_a_decoder_that_looks_ahead_is_refused(own_decoder: Path) -> None:
    config = json.loads((own_decoder / "config.json").read_text())
    (own_decoder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    for _ in range(2):  # found out, then remembered
        with pytest.raises(UserError, match=r"`backbone.name` .* cannot be read: .* depend on later tokens"):
            loaded(own_decoder)


def test_a_proof_is_remembered_for_the_same_weights_only(own_decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proven = []
    monkeypatch.setattr("embedlab.backbone.proofs.prove", lambda *args: proven.append(args) or prove(*args))
    weights = load_file(own_decoder / "model.safetensors")
    save_file({k: v * 1.1 for k, v in weights.items()}, own_decoder / "model.safetensors", metadata={"format": "pt"})
    loaded(own_decoder)
    loaded(own_decoder, BitFit())
    assert len(proven) == 1
    loaded(own_decoder, dtype="bfloat16")
    loaded(own_decoder, head=True)
    assert len(proven) == 3
    save_file({k: v * 1.5 for k, v in weights.items()}, own_decoder / "model.safetensors", metadata={"format": "pt"})
    loaded(own_decoder)
    assert len(proven) == 4


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "granite", "mistral"])
def test_the_probe_leaves_weights_and_their_kind_alone(name: str, decoder_folder: Folder) -> None:
    folder = decoder_folder(name)
    backbone = loaded(folder, dtype="bfloat16")
    assert backbone.reader.way == "packed"
    fresh = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    for (own, kept), (other, plain) in zip(
        backbone.decoder.state_dict().items(), fresh.state_dict().items(), strict=True
    ):
        assert (own, kept.dtype) == (other, plain.dtype)
        assert torch.equal(kept, plain)


# Loading ----------------------------------------------------------------------------------------------------


def test_weights_are_loaded_once_and_for_one_wish(decoder_folder: Folder) -> None:
    backbone = loaded(decoder_folder("llama"), LoRA(rank=2))
    decoder = backbone.decoder
    backbone.load(LoRA(rank=2))
    assert backbone.decoder is decoder
    for tuning, head in ((LoRA(rank=3), False), (BitFit(), False), (None, False), (LoRA(rank=2), True)):
        with pytest.raises(RuntimeError, match=r"LoRA\(rank=2.* cannot be loaded again with "):
            backbone.load(tuning, head)


def test_reading_before_loading_names_the_place_to_load(decoder_folder: Folder) -> None:
    backbone = Backbone(str(decoder_folder("llama")))
    for read in (lambda: backbone.pool(["a"], pooling.mean), lambda: backbone.log_probabilities([[5]], [[6]])):
        with pytest.raises(RuntimeError, match="configure_model"):
            read()
    with pytest.raises(RuntimeError, match="without its head"):
        loaded(decoder_folder("llama")).log_probabilities([[5]], [[6]])


@pytest.mark.parametrize("tuning", [Frozen(), BitFit(), LoRA(rank=2), Full()])
def test_weights_end_on_the_device_of_the_context_or_of_the_module(tuning: Tuning, decoder_folder: Folder) -> None:
    inside, moved = Backbone(str(decoder_folder("llama"))), Backbone(str(decoder_folder("llama"))).to("meta")
    with torch.device("meta"):  # stands for a GPU; Lightning calls `configure_model` in such a context
        inside.load(tuning)
    moved.load(tuning)
    for backbone in (inside, moved):
        tensors = [*backbone.parameters(), *backbone.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert backbone.device.type == "meta"


def test_the_device_follows_the_weights(decoder_folder: Folder) -> None:
    backbone = loaded(decoder_folder("llama"))
    assert backbone.device.type == "cpu"
    assert backbone.to("meta").device.type == "meta"


# Begin of text ----------------------------------------------------------------------------------------------


@pytest.fixture
def opening(own_decoder: Path) -> Path:
    """Return a tiny Llama whose tokenizer puts <s> before a text and </s> after it."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(own_decoder)
    return own_decoder


def ids_read(backbone: Backbone, texts: list[str], **options: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of each text that the decoder sees, and those that are pooled."""
    seen: list[list[int]] = []
    pooled: list[list[int]] = []

    def watched(states: Tensor, tokens: PackedBatch) -> Tensor:
        pooled.extend(own.tolist() for own in tokens.ids.split(tokens.lengths))
        return pooling.mean(states, tokens)

    run = backbone.reader.run

    def watching(tokens: PackedBatch, *rest: Any) -> None:
        seen.extend(own.tolist() for own in tokens.ids.split(tokens.lengths))
        run(tokens, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone.reader, "run", watching)
        backbone.pool(texts, watched, **options)
    return seen, pooled


def test_a_text_begins_as_the_tokenizer_begins_it(opening: Path, decoder_folder: Folder) -> None:
    a = byte_tokenizer()("a")["input_ids"]
    for folder, rule, first, told in (
        (opening, "auto", [1], "<s>"),
        (opening, "never", [], "none"),
        (decoder_folder("llama"), "auto", [], "none"),
        (decoder_folder("llama"), "always", [1], "<s>"),
    ):
        backbone = loaded(folder, begin_of_text=rule)
        assert backbone.tokenization.beginning == told
        assert ids_read(backbone, ["a"]) == ([[*first, *a]], [[*first, *a]])
        assert ids_read(backbone, ["a"], prefix=[7], suffix=[8])[0] == [[*first, 7, *a, 8]]


def test_a_method_that_asks_for_a_begin_gets_it_once(opening: Path, decoder_folder: Folder) -> None:
    a = byte_tokenizer()("a")["input_ids"]
    for folder in (opening, decoder_folder("llama")):
        backbone = loaded(folder)
        assert ids_read(backbone, ["a"], prefix=backbone.tokenization.bos)[0] == [[1, *a]]
    assert loaded(opening, begin_of_text="never").tokenization.bos == ()


def test_texts_that_are_cut_are_told_when_they_have_doubled(
    decoder_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    tokenization = Backbone(str(decoder_folder("llama")), max_length=6).tokenization
    for number in (0, 0, 1, 2, 3, 4):
        tokenization.ids([f"text number {number}", "short"])
    assert tokenization.texts_cut == 5
    assert re.findall(r"(\d+) so far", caplog.text) == ["1", "2", "4"]


def test_the_begin_counts_in_the_window_and_is_never_cut(opening: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = loaded(opening, max_length=6)
    ((ids,), _) = ids_read(backbone, ["abcdefghij"], prefix=[7], suffix=[8])
    assert "longer than 6 tokens" in caplog.text
    assert len(ids) == 6
    assert (ids[:2], ids[-1]) == ([1, 7], 8)


def test_a_context_begins_as_a_text_does(opening: Path) -> None:
    backbone = loaded(opening, head=True)
    model = AutoModelForCausalLM.from_pretrained(opening, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([[1, 50, 60, 70]])).logits[0].log_softmax(-1)
        first, second = backbone.log_probabilities([[50], [1, 50]], [[60, 70], [60, 70]])
    torch.testing.assert_close(first, expected[[1, 2], [60, 70]], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second, first)


# Tuning -----------------------------------------------------------------------------------------------------


def step(backbone: Backbone) -> set[str]:
    """Take one step and return the names of what changed."""
    before = {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    backbone.pool(TEXTS, pooling.weighted_mean).square().sum().backward()
    optimizer.step()
    return {name for name, parameter in backbone.named_parameters() if not torch.equal(parameter, before[name])}


def test_bitfit_moves_biases_only(architecture: str, decoder_folder: Folder) -> None:
    folder = str(decoder_folder(architecture))
    frozen = loaded(folder).pool(TEXTS, pooling.mean)
    backbone = Backbone(folder, dtype="float32")
    backbone.load(BitFit())
    backbone.eval()
    assert torch.allclose(backbone.pool(TEXTS, pooling.mean), frozen, atol=1e-5), "it must start as the same function"
    changed = step(backbone)
    assert changed
    assert all(name.endswith(".bias") for name in changed)
    has_own = architecture not in {"llama", "mistral", "qwen3", "gemma3"}
    assert any("biases" in note for note in backbone.notes) != has_own


def test_bitfit_counts_of_published_decoders() -> None:
    """`docs/methods`: 102,144 biases in GPT-2 small; none in a Llama, where 190,656 are added to SmolLM2's shape."""
    from transformers import AutoModel, GPT2Config, LlamaConfig

    with torch.device("meta"):
        gpt2 = AutoModel.from_config(GPT2Config())
        smollm2 = AutoModel.from_config(
            LlamaConfig(
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
            )
        )
    for model, count in ((gpt2, 102_144), (smollm2, 155_520 + 35_136)):
        BitFit().apply(model)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_bitfit_without_biases_says_so(decoder_folder: Folder) -> None:
    with pytest.raises(UserError, match="needs a decoder with biases"):
        Backbone(str(decoder_folder("llama"))).load(BitFit(add=False))


def test_lora_starts_as_the_same_function_and_moves_adapters_only(architecture: str, decoder_folder: Folder) -> None:
    folder = str(decoder_folder(architecture))
    frozen = loaded(folder).pool(TEXTS, pooling.mean)
    backbone = Backbone(folder, dtype="float32")
    backbone.load(LoRA(rank=2))
    backbone.eval()
    assert torch.allclose(backbone.pool(TEXTS, pooling.mean), frozen, atol=1e-5)
    backbone.train()
    changed = step(backbone)
    assert changed
    assert all("lora_" in name for name in changed)


def test_lora_names_a_missing_target_and_the_nearest(decoder_folder: Folder) -> None:
    with pytest.raises(UserError, match=r"`targets` .* which has down_proj, .*, got 'q_prj'; did you mean q_proj\.$"):
        Backbone(str(decoder_folder("llama"))).load(LoRA(targets=["v_proj", "q_prj"]))


def test_what_trains_is_kept_in_float32(decoder_folder: Folder) -> None:
    for tuning in (BitFit(), LoRA(rank=2), Full()):
        backbone = Backbone(str(decoder_folder("qwen2")), dtype="bfloat16")
        backbone.load(tuning)
        assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}
        vectors = backbone.pool(TEXTS, pooling.mean)
        assert vectors.dtype == torch.float32
        vectors.sum().backward()


def test_a_frozen_decoder_stays_in_evaluation_mode(decoder_folder: Folder) -> None:
    backbone = Backbone(str(decoder_folder("gpt2")))
    backbone.load(Frozen())
    backbone.train()
    assert not any(module.training for module in backbone.decoder.modules())


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "./nowhere"}, "`backbone.name` must be .*, a folder, .* is not there"),
        ({"name": "some/decoder"}, "could not be fetched"),
        ({"max_length": 0}, "`backbone.max_length` must be at least 1"),
        ({"tokens_per_pass": 0}, "`backbone.tokens_per_pass` must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        Backbone(**arguments).files.config  # noqa: B018  # reading it is the test


def test_a_maximum_beyond_the_window(decoder_folder: Folder) -> None:
    with pytest.raises(UserError, match=r"at most 512, the window of .*, got 600"):
        Backbone(str(decoder_folder("llama")), max_length=600).tokenization.ids(["a"])


def test_texts_are_no_longer_than_sparse_attention_is_whole(
    decoder_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = Backbone(str(decoder_folder("llama")))
    backbone.files.config.index_topk = 8
    assert len(backbone.tokenization.ids(["a longer text"])[0]) == 8
    assert "longer than 8 tokens" in caplog.text


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a", ""], "`texts` must not be empty, but text 1 has no token; leave it out, or write something."),
        (["a", 1], "`texts` must be strings, got 1 (int) as text 1; convert it, or leave it out."),
        ([None], "`texts` must be strings, got None (NoneType) as text 0; convert it, or leave it out."),
    ],
)
def test_what_is_no_text(decoder_folder: Folder, texts: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        loaded(decoder_folder("llama")).pool(texts, pooling.mean)
    assert str(caught.value) == said


def test_a_decoder_that_is_not_there_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for use in (Backbone.load, lambda own: own.files.empty(), lambda own: own.files.tokenizer()):
        with pytest.raises(UserError) as caught:
            use(Backbone("nope/x"))  # type: ignore[no-untyped-call]
        assert str(caught.value).count("`backbone.name`") == 1
        assert "could not be fetched" in str(caught.value)


def test_a_layer_the_decoder_lacks(decoder_folder: Folder) -> None:
    with pytest.raises(UserError, match="`layer` must be 0 to 3"):
        loaded(decoder_folder("llama")).pool(["a"], pooling.mean, [4])


def test_weights_without_a_head(decoder_folder: Folder, tmp_path: Path) -> None:
    folder = decoder_folder("gptj")
    AutoModelForCausalLM.from_pretrained(folder).base_model.save_pretrained(tmp_path)
    Backbone(str(folder)).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="needs a language-model head"):
        Backbone(str(tmp_path)).load(Frozen(), head=True)


def test_what_stands_around_a_text_leaves_room_for_it(decoder_folder: Folder) -> None:
    backbone = Backbone(str(decoder_folder("llama")), max_length=2)
    with pytest.raises(UserError, match="must hold more than what stands around a text, got 2"):
        backbone.tokenization.ids(["a"], [5], [6])


def test_texts_are_no_longer_than_what_one_text_changes_for_all(decoder_folder: Folder) -> None:
    config = Backbone(str(decoder_folder("llama"))).files.config
    assert longest_text(config) == 512
    config.rope_parameters = {**config.rope_parameters, "rope_type": "longrope", "original_max_position_embeddings": 64}
    assert longest_text(config) == 64


def test_every_file_of_a_tokenizer_decides_what_a_decoder_is(own_decoder: Path) -> None:
    hashes = {decoder_sha256(own_decoder)}
    for name in ("merges.txt", "vocab.json", "tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"):
        (own_decoder / name).write_text("changed")
        hashes.add(decoder_sha256(own_decoder))
    (own_decoder / "README.md").write_text("no part of it")
    hashes.add(decoder_sha256(own_decoder))
    assert len(hashes) == 6


@pytest.mark.parametrize(
    ("wrong", "came"),
    [
        (lambda states, batch: states, r"the shape \(\d+, 32\)"),
        (lambda states, batch: states[: len(batch)][None], r"the shape \(1, 2, 32\)"),
        (lambda states, batch: None, "NoneType"),
    ],
)
def test_a_pooling_gives_one_vector_per_text(decoder_folder: Folder, wrong: Any, came: str) -> None:
    """Anything else would be taken for the vectors of other texts."""
    backbone = loaded(decoder_folder("llama"))
    with pytest.raises(UserError, match=rf"^`pooling` must give one vector per text, here \(2, D\) .* gave {came};"):
        backbone.pool(["a b", "ccccc"], wrong)


def test_a_dtype_may_be_torchs_own(decoder_folder: Folder) -> None:
    own: Any
    for own in (torch.float32, torch.bfloat16):
        assert Backbone(str(decoder_folder("llama")), dtype=own).dtype == own
    for own in (torch.float16, "float16", "half", torch.int64):
        name = str(own).removeprefix("torch.")
        with pytest.raises(UserError, match=f"`backbone.dtype` must be auto, bfloat16 or float32, got {name}"):
            Backbone(dtype=own)


def test_no_texts_and_one_text(decoder_folder: Folder) -> None:
    backbone = Backbone(str(decoder_folder("llama")), dtype="float32")
    backbone.load()
    assert backbone.pool([], pooling.mean, layers=(1, 2)).shape == (0, 2, 32)
    with pytest.raises(UserError, match="`texts` must be a list of texts, got the text 'abc'; put it into a list"):
        backbone.pool("abc", pooling.mean)
