"""Odd input, and what is answered: exit status 2 and one sentence that names the argument. One process answers all.

`python -m tests.test_manners` prints the table.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import WandbLogger

from embedlab import cli, runs
from embedlab.errors import UserError
from embedlab.training.check import check
from embedlab.training.loggers import hush, set_up_loggers
from tests import processes

HEADER = "sentence1,sentence2,score"
TABLE = f"{HEADER}\nred dog,blue cat,0.5\nbig house,old horse,0.1\nred cat,blue dog,0.9\nsmall car,new street,0.3\n"
SHARED = "-c shared.yaml --model"
POOLINGS = "embedlab.pooling.last, embedlab.pooling.last_content, embedlab.pooling.mean, embedlab.pooling.weighted_mean"
LOSSES = "embedlab.losses.cosent, embedlab.losses.cosine_mse, embedlab.losses.log_mse, embedlab.losses.log_variance"

OWN = """\
from embedlab.strategies.base import Embedder

class Abstract(Embedder): ...
class Ends(Abstract):
    def __init__(self):
        raise SystemExit(0)
    def embed(self, texts, role=None): ...
class Plain: ...
def function(): ...
def pool(states, batch):
    return states
class Settings: ...
class Setting(Abstract):
    def embed(self, texts, role=None): ...
"""

# Files by name: their text, and what is said of them.
YAML_FILES: dict[str, Sequence[str]] = {
    "alias": ("a: *nothing\n", "line 1", "an alias, `*NAME`, stands for nothing", "quote"),
    "star": ("data: {train: {path: *.csv}}\n", "line 1", "begins with '*'", "quote it"),
    "at": ("\nlabel: @me\n", "line 2", "begins with '@'", "quote it"),
    "tab": ("model:\n\tclass_path: Tfidf\n", "line 2", "indented with a tab", "use blanks"),
    "twice": ("label: a\nlabel: b\n", "line 2", "the key 'label' stands there twice", "delete one"),
    "list": ("- a\n- b\n", "`key: value` pairs", "got a list", "begin no line with -"),
    "text": ("label:x\n", "`key: value` pairs", "got 'label:x'", "a blank after the colon"),
    "number": ("42\n", "`key: value` pairs", "got 42"),
    "merge": ("a: &a 3\nmodel:\n  <<: *a\n", "line 3", "`<<` merges what is no mapping", "give it"),
    "list-key": ("model:\n  ? [a, b]\n  : 3\n", "line 2", "a key is a list", "quote it"),
    "template": ("label: {{name}}\n", "line 1", "a key is a mapping", "quote it"),
    "documents": ("label: a\n---\nlabel: b\n", "line 2", "a second document", "keep one"),
    "quote": ('label: a\nstudy: "b\nrun_dir: c\n', "line 2", "a quotation mark is never closed"),
    "brace": ("label: a\ndata: {train: {path: b}\n", "line 2", "a bracket is never closed"),
    "colon": ("label: a: b\n", "line 1", "one `: ` too many", "quote the value"),
    "indent": ("model:\n  class_path: Tfidf\n init_args: {}\n", "line 3", "indented otherwise", "align"),
    "tag": ("label: !mine b\n", "line 1", "the tag !mine means nothing here"),
    "date": ("label: 1\nstudy: 2024-99-99\n", "line 2", "cannot be read", "quote it"),
    "itself": ("model: &a {class_path: Tfidf, init_args: *a}\n", "nested without end"),
    "empty": ("", "must hold options", "got none", "leave it out"),
    "comment": ("# label: a\n", "must hold options", "got none"),
    "nulls": ("label:\n", "must hold options", "got only null"),
    "section": ("label: a\ntrainer:\n", "`trainer` in section.yaml", "got null", "delete that line"),
    "no-blank": ("model:{class_path: Tfidf}\n", "`model:{class_path`", "a blank after the colon"),
    "number-key": ("1: 2\n", "`1` in number-key.yaml", "the name of an option"),
    "models": ("model: [{class_path: Tfidf}]\n", "`model` in models.yaml", "a mapping", "got a list"),
    "class": ("model: {clas_path: Tfidf}\n", "`model.clas_path` in class.yaml", "did you mean class_path"),
    "no-class": ("model: {class_path: }\n", "`model.class_path` in no-class.yaml", "got null"),
    "outside": ("model: {class_path: LoRABiEncoder, rank: 8}\n", "`model.rank` in outside.yaml", "under `init_args`"),
    "arguments": ("model: {class_path: Tfidf, init_args: [1]}\n", "`model.init_args`", "a mapping", "got [1]"),
    "encoder": (
        "model: {class_path: Freeze, init_args: {network: {encoder: embedlab.strategies.freeze_encoders.LayerwisePCB}}}\n",
        "`model.network.encoder` in encoder.yaml must lead to a class",
        "did you mean embedlab.strategies.freeze_encoders.LayerwisePCA.",
    ),
    "label": ("label: 3\nmodel: {class_path: Tfidf}\n", "`label` in label.yaml", "a text", "got 3", "quote it, as '3'"),
    "where": (
        "data: {train: {where: {score: 777}}}\nmodel: {class_path: Tfidf}\n",
        "`data.train.where` in where.yaml",
        "got 777",
        "quote it, as '777'",
    ),
}
YAML_BYTES: dict[str, Sequence[Any]] = {
    "latin": ("label: a\nstudy: é\n".encode("latin-1"), "line 2", "UTF-8", "save the file as UTF-8"),
    "wide": ("label: a\n".encode("utf-16"), "line 1", "UTF-8", "save the file as UTF-8"),
    "control": (b"label: a\nstudy: \x00\n", "line 2", "a character that no text has", "delete it"),
}

# Studies by name: what stands in them beside the protocol, and what is said of it.
STUDIES: dict[str, Sequence[str]] = {
    "one-seed": ("seeds: 3\nstrategies: {a: tfidf.yaml}\n", "`seeds` in one-seed.yaml", "a list", "got 3"),
    "text-seed": (
        "seeds: ['0']\nstrategies: {a: tfidf.yaml}\n",
        "`seeds` in text-seed.yaml",
        "as in [0, 1, 2]",
        "got '0'",
    ),
    "yes-seed": ("seeds: [yes]\nstrategies: {a: tfidf.yaml}\n", "`seeds` in yes-seed.yaml", "got true"),
    "no-strategies": ("strategies:\n", "`strategies` in no-strategies.yaml", "at least one", "got null"),
    "no-config": ("strategies: {a: }\n", "`strategies.a` in no-config.yaml", "got null"),
    "yes-label": ("strategies:\n  yes: tfidf.yaml\n", "yes-label.yaml, line 3", "'yes' is read as true", "quote it"),
    "list-name": ("study: [a]\nstrategies: {a: tfidf.yaml}\n", "`study` in list-name.yaml", "a name", "got ['a']"),
    "empty-name": ("study: ''\nstrategies: {a: tfidf.yaml}\n", "`study` in empty-name.yaml", "got ''"),
    "elsewhere": ("strategies: {a: x/tfidf.yaml}\n", "`strategies.a` in elsewhere.yaml (paths are relative to it)"),
    "two-values": (
        "strategies: {a: tfidf.yaml}\noverrides: {trainer: {max_epochs: 1}, trainer.max_epochs: 2}\n",
        "`overrides` in two-values.yaml",
        "`trainer.max_epochs` once, got 1 and 2",
    ),
}

# What was typed: what the answer must hold, beginning with the argument.
CASES: dict[str, Sequence[str]] = {
    # commands
    "list": ["`COMMAND`", "got 'list'", "did you mean ls"],
    "train -c shared.yaml": ["`COMMAND`", "did you mean fit"],
    "cmpare study.yaml": ["`COMMAND`", "did you mean compare"],
    "help nonsense": ["`COMMAND`", "got 'nonsense'"],
    # values
    f"fit {SHARED} LoRABiEncoder --model.rank eight": ["`model.rank`", "a whole number", "got 'eight'", "16"],
    f"fit {SHARED} LoRABiEncoder --model.alpha big": ["`model.alpha`", "a number", "got 'big'"],
    f"fit {SHARED} LoRABiEncoder --model.pooling mean": [
        "`model.pooling`",
        POOLINGS,
        "did you mean embedlab.pooling.mean",
    ],
    f"fit {SHARED} LoRABiEncoder --model.pooling embedlab.pooling.meen": [
        "`model.pooling`",
        "did you mean embedlab.pooling.mean",
    ],
    f"fit {SHARED} LoRABiEncoder --model.pooling embedlab.pooling": ["`model.pooling`", "got 'embedlab.pooling'"],
    f"fit {SHARED} SGPTBiEncoder --model.backbone.name no-where": [
        "`model.backbone.name`",
        "'no-where' at revision main",
    ],
    f"fit {SHARED} LoRABiEncoder --model.pooling nowhere.pool": ["`model.pooling`", POOLINGS, "no module 'nowhere'"],
    f"fit {SHARED} Freeze --model.loss mse": ["`model.loss`", LOSSES, "did you mean embedlab.losses.mse"],
    f"fit {SHARED} Freeze --model.final_punctuation maybe": ["`model.final_punctuation`", "one of keep, strip, append"],
    f"fit {SHARED} Freeze --model.pretraining.source.limit few": ["`model.pretraining.source.limit`", "got 'few'"],
    f"fit {SHARED} LoRABiEncoder --model.backbone.dtype float16": [
        "`model.backbone.dtype`",
        "one of auto, bfloat16, float32",
        "did you mean bfloat16",
    ],
    f"fit {SHARED} LoRABiEncoder --model.backbone [a,b]": ["`model.backbone`", "options among name, revision, dtype"],
    f"fit {SHARED} LoRABiEncoder --model.backbone smollm2": ["`model.backbone`", "options among name", "got 'smollm2'"],
    f"fit {SHARED} LoRABiEncoder --model.training fast": ["`model.training`", "options among learning_rate"],
    f"fit {SHARED} LoRABiEncoder --model.training.warmup long": [
        "`model.training.warmup`",
        "a number",
        "got 'long'",
        "0.1",
    ],
    "fit -c shared.yaml -c rank.yaml": ["`model.rank`", "a whole number", "got 'eight'"],
    "fit -c shared.yaml -c widths.yaml": ["`model.network.widths`", "a list", "got 'wide'"],
    "fit -c shared.yaml -c training.yaml": ["`model.training`", "options among learning_rate", "got [1, 2]"],
    f"fit {SHARED} Tfidf -c trainer.yaml": ["`trainer`", "options among", "got [1]"],
    f"fit {SHARED} Tfidf --trainer.max_epochs abc": ["`trainer.max_epochs`", "a whole number or null", "got 'abc'"],
    f"fit {SHARED} Tfidf --trainer.precision 7": ["`trainer.precision`", "one of 64, 32, 16", "got 7"],
    f"fit {SHARED} Tfidf --data.train.limit abc": ["`data.train.limit`", "a whole number or null", "got 'abc'"],
    f"fit {SHARED} Tfidf --data.train.limit -3": ["`data.train.limit`", "at least 1", "got -3"],
    f"fit {SHARED} Tfidf --data.train.score_range [0]": ["`data.train.score_range`", "[a number, a number]", "got [0]"],
    f"fit {SHARED} Tfidf --data.test 3": ["`data.test`", "a mapping from names", "got 3"],
    f"fit {SHARED} Tfidf --data.batch_size 0": ["`data.batch_size`", "at least 1", "got 0"],
    f"test {SHARED} Tfidf --data.test null": ["`data.test`", "a source of pairs", "--data.test '{NAME: {path: FILE}}'"],
    f"fit {SHARED} Tfidf --trainer.precision bf16-true": [
        "`trainer.precision`",
        "32-true or bf16-mixed",
        "backbone.dtype",
    ],
    f"fit {SHARED} LoRABiEncoder --model.alpha 0": ["`model.alpha`", "positive and finite", "got 0.0"],
    f"fit {SHARED} LoRABiEncoder --model.dropout 1": ["`model.dropout`", "less than 1", "got 1.0"],
    f"fit {SHARED} SGPTBiEncoder --model.scale .nan": ["`model.scale`", "positive and finite", "got nan"],
    f"predict {SHARED} Tfidf": ["`data.predict`", "a source of pairs", "give --data.predict.path FILE"],
    # classes and functions of the user's own
    f"fit {SHARED} ends.Strategy": ["`ends`", "ends.py, line 2, does (SystemExit: bye)", "__main__"],
    f"fit {SHARED} LoRABiEncoder --model.pooling ends.pool": ["`ends`", "ends.py, line 2, does (SystemExit: bye)"],
    f"fit {SHARED} own.Ends": ["`own`", "own.py, line 6, does (SystemExit: 0)", "raise an error instead"],
    f"fit {SHARED} raises.Strategy": ["`raises.Strategy`", "raises.py, line 2, raises ZeroDivisionError: division by"],
    "fit -c shared.yaml -c raises.yaml": ["`raises.Strategy`", "raises.py, line 2, raises ZeroDivisionError"],
    f"fit {SHARED} LoRABiEncoder --model.pooling raises.pool": ["`raises.pool`", "raises.py, line 2, raises"],
    f"fit {SHARED} Tfidf --trainer.callbacks raises.Callback": ["`raises.Callback`", "raises.py, line 2, raises"],
    f"fit {SHARED} syntax.Strategy": ["`syntax.Strategy`", "syntax.py, line 1, is no Python", "never closed"],
    f"fit {SHARED} lacks.Strategy": ["`lacks.Strategy`", "lacks.py, line 1", "No module named 'never_installed'"],
    f"fit {SHARED} own.function": ["`model`", "an EmbeddingStrategy", "own.function is of type function", "Tfidf"],
    f"fit {SHARED} own.Plain": ["`model`", "an EmbeddingStrategy", "own.Plain does not subclass it", "Tfidf"],
    "fit -c shared.yaml -c plain.yaml": ["`model` in plain.yaml", "own.Plain does not subclass it", "Tfidf"],
    f"fit {SHARED} own.Abstract": ["`model`", "own.Abstract is abstract, without embed", "write it"],
    "fit -c shared.yaml -c typing_error.yaml": [
        "`model.sublinear` in typing_error.yaml",
        "an option of Tfidf",
        "it has none",
    ],
    "fit -c shared.yaml -c decoder.yaml": ["`model` in decoder.yaml", "must name a strategy", "give -c"],
    f"fit {SHARED} LoRABiEncoder --model.pooling own.pool": [
        "`model.pooling` must be a function annotated `-> Tensor`, got 'own.pool', which is not",
        "; write `def pool(...) -> Tensor:`.",
    ],
    f"fit {SHARED} nowhere.Mine": [
        "`model` must lead to a class, but there is no module 'nowhere' in the working directory (/",
        " or on PYTHONPATH; start where nowhere.py is, or put its folder on PYTHONPATH.",
    ],
    "fit -c shared.yaml -c below/beside.yaml": [
        "`model` in below/beside.yaml must lead to a class, but there is no module 'beside' in the working",
        "; start where beside.py is, or put its folder on PYTHONPATH.",
    ],
    f"fit {SHARED} LoRABiEncoder --model.pooling elsewhere.pool": [
        "'elsewhere.pool'; there is no module",
        "start where",
    ],
    f"fit {SHARED} own.Settinga": [
        "`model` must lead to a class, but own defines no Settinga; did you mean own.Setting."
    ],
    f"fit {SHARED} own.Settings": ["own.Settings does not subclass it; did you mean own.Setting."],
    f"fit {SHARED} Settin": [
        "`model` must be the name or dotted path of a class, got Settin; did you mean own.Setting."
    ],
    f"fit {SHARED} Tfidf --data.test.mine.query both": [
        "`data.test.mine.query` must be one of first, second, got 'both'"
    ],
    f"fit {SHARED} Tfidf --data.test '{{mine: {{path: a.csv, query: both}}}}'": ["`data.test.mine.query` must be"],
    f"fit {SHARED} Tfidf -c query.yaml": ["`data.test.mine.query` in query.yaml must be"],
    f"fit {SHARED} Tfidf --data.test.a.query second --data.test.other.limit few": ["`data.test.other.limit` must be"],
    # null, true, and what is not quoted
    f"fit {SHARED} LoRABiEncoder --model.rank null": ["`model.rank`", "a whole number", "got null", "16"],
    f"fit {SHARED} LoRABiEncoder --model.rank true": ["`model.rank`", "a whole number", "got true", "16"],
    f"fit {SHARED} LoRABiEncoder --model.backbone null": ["`model.backbone`", "options among name", "got null"],
    f"fit {SHARED} LoRABiEncoder --model.training null": ["`model.training`", "options among learning", "got null"],
    f"fit {SHARED} LoRABiEncoder --model.training.warmup null": ["`model.training.warmup`", "a number", "got null"],
    f"fit {SHARED} Tfidf --data.batch_size null": ["`data.batch_size`", "a whole number", "got null"],
    f"fit {SHARED} Tfidf --trainer.accumulate_grad_batches null": ["`trainer.accumulate_grad_batches`", "got null"],
    f"fit {SHARED} Tfidf -x": ["`-x`", "write --x."],
    f"fit {SHARED} Tfidf --print_config=all": ["`--print_config`", "without a value", "got 'all'"],
    "fit --model.help Nope": ["`--model.help`", "the name of a class", "got 'Nope'"],
    # a class or a source in a word
    f"fit {SHARED} tfidf.yaml": ["`model`", "a class, or the file of one", "write -c tfidf.yaml"],
    f"fit {SHARED} '{{class_path: Tfidf'": ["`model` must be YAML", "close the bracket"],
    f"fit {SHARED} '{{class_path: LoRABiEncoder, rank: 8}}'": ["`model.rank`", "under `init_args`"],
    f"fit {SHARED} Tfidf --trainer '{{'": ["`trainer` must be YAML", "got '{'", "close the bracket"],
    f"fit {SHARED} Tfidf --data.train a.csv": ["`data.train`", "a mapping", "got 'a.csv'", "write {path: a.csv}"],
    f"fit {SHARED} Tfidf --data.test a.csv": ["`data.test`", "a mapping", "write {NAME: {path: a.csv}}"],
    "fit -c shared.yaml -c source.yaml": ["`data.test.b` in source.yaml", "got 'a.csv'", "write {path: a.csv}"],
    f"fit {SHARED} Tfidf --=3": ["`--`", "the name of an option"],
    # ranges
    f"fit {SHARED} Tfidf --trainer.gradient_clip_val -1": ["`trainer.gradient_clip_val`", "at least 0", "got -1"],
    f"fit {SHARED} LoRABiEncoder --model.training.warmup -1": ["`model.training.warmup`", "0 to 1", "got -1.0"],
    f"fit {SHARED} LoRABiEncoder --model.training.warmup 2": ["`model.training.warmup`", "0 to 1", "got 2.0"],
    f"fit {SHARED} LoRABiEncoder --model.training.weight_decay -1": [
        "`model.training.weight_decay`",
        "at least 0",
        "got -1.0",
    ],
    f"fit {SHARED} LoRABiEncoder --model.training.learning_rate 0": [
        "`model.training.learning_rate`",
        "positive",
        "got 0.0",
    ],
    f"fit {SHARED} LoRABiEncoder --model.training.learning_rate .nan": ["`model.training.learning_rate`", "got nan"],
    f"fit {SHARED} LearnedPooling --model.size 0": [
        "`model.size` must be at least 1, got 0; raise it, or leave it out."
    ],
    f"fit {SHARED} LearnedPooling --model.template {{}}": ["`model.template` must be a text, got {}", """as '"{}"'."""],
    # what may be left out, and has ranges of its own
    **{
        f"fit {SHARED} Freeze --model.pretraining.source.path texts.csv --model.pretraining.{option} {value}": [
            f"error: `model.pretraining.{option}` must be {said}"
        ]
        for option, value, said in (
            ("epochs", 0, "at least 1, got 0; `pretraining: null` leaves the stage out."),
            ("batch_size", 0, "at least 1, got 0; raise it."),
            ("rate_growth", -1, "at least 0, got -1.0; raise it."),
            ("training.learning_rate", -1, "positive, got -1.0; such as 2e-5."),
        )
    },
    "fit -c shared.yaml -c stage.yaml": [
        "error: `model.pretraining.training.warmup` must be a share",
        "got 3.0; 0 is none",
    ],
    # the trainer, the seed, checkpoints
    f"fit {SHARED} Tfidf --trainer.accelerator tpu": ["`trainer.accelerator`", "cpu", "got tpu"],
    f"fit {SHARED} Tfidf --trainer.accelerator cpuu": ["`trainer.accelerator`", "got cpuu", "did you mean cpu"],
    f"fit {SHARED} Tfidf --trainer.max_time banana": ["`trainer.max_time`", "such as 00:12:00:00", "got banana"],
    f"fit {SHARED} Tfidf --trainer.max_time '{{day: 1}}'": ["`trainer.max_time`", "got {'day': 1}", "leave it out"],
    f"fit {SHARED} Tfidf --trainer.max_time 00:00:00:00": ["`trainer.max_time`", "above 0", "got 00:00:00:00"],
    f"fit {SHARED} Tfidf --trainer.val_check_interval 0.0": ["`trainer.val_check_interval`", "above 0", "leave it out"],
    f"fit {SHARED} Freeze --model.network.widths []": [
        "`model.network.widths`",
        "one or more of at least 1, got []; name one",
    ],
    "ls --all": ["`--all` must be an option of embedlab ls", "leave it out, as it takes no options"],
    "errors study --wurst 3": ["`--wurst` must be an option of embedlab errors", "did you mean --worst"],
    f"fit {SHARED} Tfidf --trainer.devices 0": ["`trainer.devices`", "at least 1", "got 0"],
    f"fit {SHARED} Tfidf --trainer.accelerator cpu --trainer.devices many": ["`trainer.devices`", "got many"],
    f"fit {SHARED} Tfidf --trainer.strategy ddpp": ["`trainer.strategy`", "got 'ddpp'", "did you mean ddp"],
    f"fit {SHARED} Tfidf --trainer.logger MLFlowLogger": [
        "`trainer.logger`",
        "MLFlowLogger needs mlflow",
        "install it",
    ],
    f"fit {SHARED} Tfidf --trainer.logger TensorBoardLogger": [
        "`trainer.logger.save_dir`",
        "add --trainer.logger.save_dir",
    ],
    f"fit {SHARED} Tfidf -c loggers.yaml --trainer.logger.1.init_args.offline false": [
        "`trainer.logger.1`",
        "write --trainer.logger.offline",
    ],
    f"fit {SHARED} Freeze --model.network.encoder embedlab.strategies.freeze_encoders.LayerwiseAutoencoderr": [
        "`model.network.encoder` must lead to a class",
        "did you mean embedlab.strategies.freeze_encoders.LayerwiseAutoencoder.",
    ],
    f"fit {SHARED} Freeze --model.network.activation torhc.nn.GELU": ["`model.network.activation`", "'torhc'"],
    f"fit {SHARED} Freeze --model.network.encoder LayerwiseAutoencoderr": [
        "`model.network.encoder` must be a class, such as embedlab.strategies.freeze_encoders.LayerwiseAutoencoder",
        "did you mean embedlab.strategies.freeze_encoders.LayerwiseAutoencoder.",
    ],
    f"fit {SHARED} Tfidf --seed_everything -1": ["`seed_everything`", "from 0 to 2^32 - 1", "got -1"],
    f"fit {SHARED} Tfidf --seed_everything false": ["`seed_everything`", "from 0 to 2^32 - 1", "got false"],
    f"fit {SHARED} Tfidf --seed_everything 99999999999": ["`seed_everything`", "from 0 to 2^32 - 1"],
    f"fit {SHARED} Tfidf --ckpt_path missing": ["`ckpt_path`", "must name a checkpoint", "missing is no such file"],
    f"test {SHARED} Tfidf --ckpt_path missing": ["`ckpt_path`", "must name a checkpoint", "missing is no such file"],
    f"test {SHARED} LoRABiEncoder --ckpt_path best": [
        "`ckpt_path`",
        "RUN/checkpoints/best.ckpt",
        "best is no such file",
    ],
    f"test {SHARED} LoRABiEncoder": ["`ckpt_path`", "what LoRABiEncoder has learned", "got none"],
    f"fit {SHARED} Tfidf --ckpt_path archive.zip": ["`ckpt_path`", "left out for Tfidf", "got archive.zip"],
    f"fit {SHARED} Tfidf --trainer.fast_dev_run true": ["`trainer.fast_dev_run`", "left out"],
    f"fit {SHARED} Tfidf -c odd.yaml": ["`data.test`", "got 'a\\x00'", "use letters"],
    f"fit {SHARED} Tfidf -c alike.yaml": ["`data.test`", "a/B and A-b", "rename one"],
    f"fit {SHARED} Tfidf --data.train.path letters.csv": ["`data.train`", "words of two letters"],
    f"fit {SHARED} Tfidf --trainer.num_nodes 0": ["`trainer.num_nodes`", "positive", "got 0"],
    f"fit {SHARED} Tfidf --trainer.strategy deepspeed": ["`trainer", "DeepSpeed installed"],
    f"fit {SHARED} Tfidf --trainer.limit_val_batches 0": ["`trainer.limit_val_batches`", "above 0", "leave it out"],
    f"fit {SHARED} LoRABiEncoder --trainer.limit_train_batches 0.0": ["`trainer.limit_train_batches`", "above 0"],
    f"fit {SHARED} Tfidf --trainer.check_val_every_n_epoch 0": [
        "`trainer.check_val_every_n_epoch`",
        "at least 1",
        "got 0",
    ],
    # YAML files
    **{
        f"fit -c shared.yaml -c {name}.yaml": [f"{name}.yaml", *said]
        for name, (_, *said) in {**YAML_FILES, **YAML_BYTES}.items()
    },
    "fit -c loop.yaml": ["loop.yaml must be a file", "a link that leads to none"],
    "fit -c dangling.yaml": ["dangling.yaml must be a file", "a link that leads to none"],
    "fit -c folder": ["folder must be a file", "got a folder", "name a file in it"],
    "compare list.yaml": ["list.yaml must hold `key: value` pairs", "got a list"],
    # empty values
    "fit -c ''": ["'' must be a YAML file or the name of one that ships"],
    "compare ''": ["`STUDY.yaml`", "must have a value", "got an empty text"],
    "compare study.yaml --runs ''": ["`--runs`", "must have a value", "got an empty text"],
    "compare study.yaml --runs=": ["`--runs`", "must have a value", "got an empty text"],
    "compare study.yaml --only ''": ["`--only`", "must have a value", "got an empty text"],
    "report ''": ["`RUNS`", "must have a value", "got an empty text"],
    "report folder --markdown ''": ["`--markdown`", "must have a value", "got an empty text"],
    "configs ''": ["`NAME`", "must have a value", "got an empty text"],
    f"fit {SHARED} ''": ["`model`", "must have a value", "got an empty text"],
    f"fit {SHARED} Tfidf --run_dir ''": ["`run_dir`", "must have a value", "got an empty text", "leave it out"],
    f"fit {SHARED} Tfidf --run_dir=": ["`run_dir`", "must have a value", "got an empty text"],
    f"fit {SHARED} Tfidf --ckpt_path ''": ["`ckpt_path`", "must have a value", "got an empty text"],
    f"fit {SHARED} Tfidf --data.train.path ''": ["`data.train.path`", "must have a value", "got an empty text"],
    f"fit {SHARED} LoRABiEncoder --model.backbone.name ''": ["`model.backbone.name`", "must have a value"],
    f"fit {SHARED} LoRABiEncoder --model.backbone '{{name: \"\"}}'": ["`model.backbone.name`", "must have a value"],
    "fit -c shared.yaml -c nameless.yaml": ["`model.backbone.name` in nameless.yaml", "must have a value"],
    "compare study.yaml trainer.max_epochs=": ["`trainer.max_epochs`", "must be given a value", "=null"],
    "compare study.yaml data.train.path='\"\"'": ["`data.train.path`", "must have a value"],
    # what a run sets itself
    f"fit {SHARED} Tfidf --trainer.default_root_dir x": ["`trainer.default_root_dir`", "left out", "set `run_dir`"],
    "fit -c shared.yaml -c root.yaml": ["`trainer.default_root_dir` in root.yaml", "left out", "set `run_dir`"],
    "compare study.yaml trainer.default_root_dir=x": ["`trainer.default_root_dir`", "left out", "set `run_dir`"],
    f"fit {SHARED} Tfidf --trainer.num_sanity_val_steps 2": ["`trainer.num_sanity_val_steps`", "left out", "got 2"],
    f"fit {SHARED} Tfidf --trainer.use_distributed_sampler true": ["`trainer.use_distributed_sampler`", "left out"],
    # places
    f"fit {SHARED} Tfidf --run_dir loop.yaml/x": [
        "`run_dir`",
        "must be a folder",
        "loop.yaml is a link that leads to none",
    ],
    f"fit {SHARED} Tfidf --run_dir file": ["`run_dir`", "must be a folder", "file is a file"],
    f"fit {SHARED} Tfidf --run_dir file/below": ["`run_dir`", "must be a folder", "file is a file"],
    f"fit {SHARED} Tfidf --run_dir study": ["`run_dir`", "of its own", "study/seed-0 lies in it", "another one"],
    f"fit {SHARED} Tfidf --label ../../evil": ["`label`", "got '../../evil'", "use letters"],
    f"fit {SHARED} Tfidf --study /abs": ["`study`", "got '/abs'", "use letters"],
    "compare study.yaml --runs file": ["`--runs`", "must be a folder", "file is a file"],
    "compare study.yaml --runs file/below --dry-run": ["`--runs`", "must be a folder", "file is a file"],
    "compare absolute.yaml": ["`study`", "got '/abs'", "use letters"],
    "compare evil.yaml": ["`strategies`", "got '../../evil'", "use letters"],
    "report folder --markdown folder.md": ["`--markdown`", "folder.md is a folder"],
    "report folder --markdown tables.html": ["`--markdown`", "must name a file that ends in .md", "tables.md would do"],
    "report folder --markdown nowhere/tables.md": ["`--markdown`", "make nowhere first"],
    "report folder": ["`RUNS`", "must hold runs"],
    "report nowhere": ["`RUNS`", "must be a folder"],
    # studies
    "compare": ["`STUDY.yaml`", "must be given", "got none"],
    "compare study.yaml --jobs two": ["`--jobs`", "a whole number", "got 'two'"],
    "compare study.yaml --only ,": ["`--only`", "a strategy of the study", "got ','"],
    "compare study.yaml --only tfidf,none": ["`--only`", "a strategy of the study", "got 'none'"],
    "compare study.yaml --only none": ["`--only`", "a strategy of the study", "there are tfidf"],
    "compare study.yaml study.yaml": ["`STUDY.yaml`", "must be one file", "one after the other"],
    "compare study.yaml --set trainer.max_epochs=3": ["`--set`", "--override KEY=VALUE"],
    "compare study.yaml lora.model.rank=3": [
        "`lora.model.rank`",
        "must begin with model, data, trainer",
        "strategies.lora.overrides",
    ],
    "compare study.yaml trainer.max_epochs": ["KEY=VALUE", "got 'trainer.max_epochs'", "give it a value"],
    "compare foreign.yaml": ["`strategies.tfidf.seeds`", "among the study's [0]", "got 5"],
    "compare own.yaml --seeds 1 --only tfidf": ["`--seeds`", "tfidf run with none of [1]"],
    "compare decoders.yaml": ["`backbone`", "one YAML file", "got ['a.yaml', 'b.yaml']"],
    "compare backbone.yaml": ["`strategies.tfidf.backbone`", "left out", "model.backbone.name"],
    "compare study.yaml --dry-run=yes": ["`--dry-run`", "must go without a value", "got 'yes'"],
    "compare study.yaml --seeds 0-3": ["`--seeds`", "whole numbers", "as in [0, 1, 2]", "got '0-3'"],
    "compare study.yaml --seeds ٣": ["`--seeds`", "whole numbers", "got '٣'"],
    "compare study.yaml =3": ["An override", "an option such as trainer.max_epochs", "complete it"],
    "compare study.yaml trainer..max_epochs=3": ["An override", "got `trainer..max_epochs`", "complete it"],
    "compare shared.yaml": ["`data` in shared.yaml", "must be one of study", "`embedlab fit -c shared.yaml`"],
    "fit -c study.yaml": ["study.yaml must hold options of a run", "is a study", "`embedlab compare`"],
    "report folder folder": ["`folder`", "must be left out", "takes one RUNS"],
    "configs a b": ["`b`", "must be left out", "takes one NAME"],
    **{f"compare {name}.yaml": said for name, (_, *said) in STUDIES.items()},
    # data
    f"fit {SHARED} Tfidf --data.train.path nowhere.csv": ["`data.train.path`", "'nowhere.csv' is not there"],
    f"fit {SHARED} Tfidf --data.validation.path unscored.csv": [
        "`data.validation`",
        "got pairs without scores",
        "`columns:",
    ],
    f"fit {SHARED} Tfidf --data.validation.path texts.csv": ["`data.validation`", "scored pairs, got texts"],
    f"fit {SHARED} Tfidf --data.train.path short.csv": ["short.csv, line 3", "3 fields", "got 1"],
    f"fit {SHARED} Tfidf --data.train.path latin.csv": ["latin.csv", "line 2", "UTF-8"],
    f"fit {SHARED} Tfidf --data.train.path broken.jsonl": ["broken.jsonl, line 2", "a JSON object"],
    f"fit {SHARED} Tfidf --data.train.path half.jsonl": ["half.jsonl, line 1", "Unicode text", "surrogate"],
    f"fit {SHARED} Tfidf --data.train.path broken.parquet": ["`data.train.path`", "'broken.parquet'", "Parquet"],
    f"fit {SHARED} Tfidf --data.train.path broken.csv.gz": ["`data.train.path`", "'broken.csv.gz' cannot"],
    f"fit {SHARED} Tfidf --data.train.path cut.csv.gz": ["`data.train.path`", "'cut.csv.gz' cannot"],
}
INTERNALS = (
    "Traceback",
    "Parser key",
    "Union",
    "Subtypes",
    "<class",
    "NestedArg",
    "Namespace",
    "collections.abc",
    "typing.",
)


def make_place(place: Path) -> None:
    """Write the files that the cases name."""
    study = "protocol: shared.yaml\nseeds: [0]\nstrategies:\n"
    run = "data: {train: {path: a.csv}, validation: {path: a.csv}, test: {a: {path: a.csv}}}\n"
    texts = {
        "a.csv": TABLE,
        "shared.yaml": f"{run}trainer: {{max_epochs: 1, logger: false, enable_model_summary: false}}\n",
        "loggers.yaml": "trainer: {logger: [{class_path: CSVLogger, init_args: {save_dir: .}}, {class_path: WandbLogger}]}\n",
        "tfidf.yaml": "model: {class_path: Tfidf}\n",
        "odd.yaml": 'data: {test: {"a\\0": {path: a.csv}}}\n',
        "alike.yaml": "data: {test: {a/B: {path: a.csv}, A-b: {path: a.csv}}}\n",
        "letters.csv": f"{HEADER}\na,b,0.5\n",
        "rank.yaml": "model: {class_path: LoRABiEncoder, init_args: {rank: eight}}\n",
        "widths.yaml": "model: {class_path: Freeze, init_args: {network: {widths: [wide]}}}\n",
        "training.yaml": "model: {class_path: LoRABiEncoder, init_args: {training: [1, 2]}}\n",
        "trainer.yaml": "trainer: [1]\n",
        "stage.yaml": "model: {class_path: Freeze, init_args: {pretraining: {source: {path: a}, training: {warmup: 3}}}}\n",
        "study.yaml": f"{study}  tfidf: tfidf.yaml\n",
        "absolute.yaml": f"study: /abs\n{study}  tfidf: tfidf.yaml\n",
        "evil.yaml": f"{study}  ../../evil: tfidf.yaml\n",
        "foreign.yaml": f"{study}  tfidf: {{config: tfidf.yaml, seeds: [5]}}\n",
        "own.yaml": f"{study}  tfidf: {{config: tfidf.yaml, seeds: [0]}}\n",
        "decoders.yaml": f"backbone: [a.yaml, b.yaml]\n{study}  tfidf: tfidf.yaml\n",
        "backbone.yaml": f"{study}  tfidf: {{config: tfidf.yaml, backbone: a.yaml}}\n",
        "ends.py": "import sys\nsys.exit('bye')\n",
        "raises.py": "def fail():\n    return 1 / 0\n\nfail()\n",
        "syntax.py": "print(1\n",
        "lacks.py": "import never_installed\n",
        "own.py": OWN,
        "raises.yaml": "model: {class_path: raises.Strategy}\n",
        "plain.yaml": "model: {class_path: own.Plain}\n",
        "ends.yaml": "model: {class_path: ends.Strategy}\n",
        "typing_error.yaml": "model: {class_path: Tfidf, init_args: {sublinear: true}}\n",
        "source.yaml": "data: {test: {b: a.csv}}\n",
        "nameless.yaml": "model: {init_args: {backbone: {name: ''}}}\n",
        "root.yaml": "trainer: {default_root_dir: elsewhere}\n",
        "lora.yaml": "model: {class_path: LoRABiEncoder, init_args: {backbone: {name: of-lora}, rank: 3}}\n",
        "decoder.yaml": "model: {init_args: {backbone: {name: of-decoder, dtype: float32}}}\n",
        "below/beside.yaml": "model: {class_path: beside.Mine}\n",
        "below/beside.py": "class Mine: ...\n",
        "query.yaml": "data: {test: {a: {path: a.csv}, mine: {path: a.csv, query: both}}}\n",
        "unscored.csv": "first,second\nred,blue\n",
        "texts.csv": "text\nred\n",
        "short.csv": f"{HEADER}\na,b,0.5\na\n",
        "broken.jsonl": '{"text": "red"}\n{"text"\n',
        "half.jsonl": '{"text": "\\ud800"}\n',
        "broken.parquet": "PAR1 no more",
        "broken.csv.gz": "no gzip",
        "file": "",
    }
    (place / "below").mkdir()
    for name, text in texts.items():
        (place / name).write_text(text)
    for name, (text, *_) in YAML_FILES.items():
        (place / f"{name}.yaml").write_text(text)
    for name, (text, *_) in STUDIES.items():
        (place / f"{name}.yaml").write_text(f"protocol: shared.yaml\n{text}")
    for name, (content, *_) in YAML_BYTES.items():
        (place / f"{name}.yaml").write_bytes(content)
    (place / "loop.yaml").symlink_to("loop.yaml")
    (place / "dangling.yaml").symlink_to("nowhere")
    (place / "latin.csv").write_bytes(f"{HEADER}\nré,bleu,0.5\n".encode("latin-1"))
    (place / "cut.csv.gz").write_bytes(gzip.compress(TABLE.encode() * 50)[:-20])
    (place / "archive.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    for folder in ("folder", "folder.md", "study/seed-0"):
        (place / folder).mkdir(parents=True)
    (place / "study" / "seed-0" / runs.STATUS).write_text("{}")


def answer(lines: Sequence[str]) -> list[tuple[int, str, str]]:
    """Type each line; give its status, and what was written to both streams."""
    found = []
    commands = LightningCLI.subcommands()

    def only(name: str) -> staticmethod:
        return staticmethod(lambda: {name: commands.get(name)})

    for line in lines:
        # The parsers of the three other commands would take most of the time.
        LightningCLI.subcommands = only(line.split()[0])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            sys.argv = ["embedlab", *shlex.split(line)]
            try:
                status = cli.main(shlex.split(line))
            except SystemExit as error:
                status = int(error.code or 0)
            except BaseException:
                traceback.print_exc()
                status = 1
        found.append((status, out.getvalue(), err.getvalue()))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder two levels down, so that `../../evil` would lead to one that can be looked at."""
    place = tmp_path_factory.mktemp("manners") / "one" / "two"
    place.mkdir(parents=True)
    make_place(place)
    return place


@pytest.fixture(scope="module")
def answers(place: Path) -> dict[str, tuple[int, str, str]]:
    """What is answered to each case."""
    return dict(zip(CASES, processes.call(place, answer, list(CASES)), strict=True))


@pytest.mark.parametrize("line", CASES)
def test_odd_input_is_answered_in_one_sentence(answers: dict[str, tuple[int, str, str]], line: str) -> None:
    status, out, err = answers[line]
    assert (status, out) == (2, ""), err
    assert re.fullmatch(r"embedlab: error: [^\n]*\.\n", err), err
    assert not [own for own in INTERNALS if own in err], err
    assert not [own for own in CASES[line] if own not in err], err


def test_nothing_is_left_behind(place: Path, answers: dict[str, tuple[int, str, str]]) -> None:
    before = Path(tempfile.mkdtemp(dir=place.parents[1]))
    make_place(before)
    assert answers
    assert {own.name for own in place.iterdir()} - {own.name for own in before.iterdir()} <= {"runs", "cache"}
    assert not [own for own in (place / "runs").rglob("*") if own.is_dir() and not list(own.iterdir())]
    assert [own.name for own in place.parent.iterdir()] == ["two"]
    assert not list(place.rglob("evil*/*"))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("-c decoder.yaml -c lora.yaml", "of-lora"),
        ("-c lora.yaml -c decoder.yaml", "of-decoder"),
        ("--model.backbone.name typed --model.backbone.dtype=float32 -c lora.yaml", "of-lora"),
        ("--model.backbone.dtype float32 --model=LoRABiEncoder --model.rank 3 --model.backbone.name typed", "typed"),
    ],
)
def test_options_of_a_strategy_may_come_before_it_and_what_is_later_wins(place: Path, words: str, name: str) -> None:
    ((status, out, err),) = processes.call(place, answer, [f"fit -c shared.yaml {words} --print_config"])
    assert status == 0, err
    arguments = yaml.safe_load(out)["model"]["init_args"]
    assert (arguments["rank"], arguments["backbone"]["name"]) == (3, name)
    assert arguments["backbone"]["dtype"] == "float32"


def test_only_our_own_strategies_are_listed(place: Path) -> None:
    lines = [f"fit {SHARED} own.Abstract", "fit -c shared.yaml", f"fit {SHARED} xyz"]
    said = [err for _, _, err in processes.call(place, answer, lines)]
    ours = "Freeze, LearnedPooling, LoRABiEncoder, PooledDecoder, SGPTBiEncoder, SGPTCrossEncoder, "
    ours += "SentenceTransformerReference, Tfidf"
    for own in said:
        assert f" {ours}, or a class of your own by its dotted path.\n" in own
        assert "Setting" not in own


def faults(labels: Sequence[str]) -> list[list[str]]:
    """Return what the check of a study says of strategies."""
    sys.path.append(os.getcwd())
    wanted = {"backbone": None, "shared": {}, "own": {}, "seeds": [0], "places": []}
    return [own["faults"] for own in check([{"files": ["shared.yaml", f"{label}.yaml"], **wanted} for label in labels])]


def test_a_study_names_the_line_of_a_users_module(place: Path) -> None:
    (ends,), (raises,) = processes.call(place, faults, ["ends", "raises"])
    assert "`ends` must not end the program, but ends.py, line 2, does (SystemExit: bye)" in ends
    assert "`raises.Strategy`" in raises
    assert "raises.py, line 2, raises ZeroDivisionError: division by zero" in raises


def test_a_profiler_says_what_took_how_long(place: Path) -> None:
    words = f"fit {SHARED} Tfidf --run_dir profiled --trainer.profiler simple"
    assert "Profiler Report" in processes.run(place, words.split()).stderr


def test_columns_called_like_their_roles_need_no_saying(place: Path) -> None:
    (place / "roles.csv").write_text(TABLE.replace(HEADER, "first,second,score"))
    words = f"fit {SHARED} Tfidf --run_dir {place}/roles --data.train.path roles.csv --data.validation.path roles.csv"
    ((status, _, err),) = processes.call(place, answer, [words])
    assert status == 0, err
    result = runs.read_result(place / "roles")
    assert result is not None
    assert result["data"]["train"]["rows"] == 4


def test_an_option_of_the_last_logger_needs_no_number(place: Path) -> None:
    words = f"fit {SHARED} Tfidf -c loggers.yaml --trainer.logger.offline true --print_config"
    ((status, out, _),) = processes.call(place, answer, [words])
    assert status == 0
    assert re.search(
        r"class_path: lightning.pytorch.loggers.WandbLogger\s+init_args:(\s+\w+: .*)*\s+offline: true", out
    )


def test_going_online_needs_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    arguments = Namespace(save_dir=".", name=None, project="x", offline=False)
    logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=arguments)
    config = Namespace(trainer=Namespace(logger=[logger]), study="s")
    with pytest.raises(UserError, match="`trainer.logger.offline` must be true"):
        set_up_loggers(config, Path("run"), "x")
    monkeypatch.setattr("wandb.login", lambda prompt: True)
    set_up_loggers(config, Path("run"), "x")
    assert arguments.save_dir == "run"


def _wandb_says() -> str:
    """Make what Lightning's logger makes of Weights & Biases; give what was printed."""
    os.environ.pop("WANDB_SILENT", None)
    arguments = Namespace(save_dir=".", name=None, project="x", offline=True)
    logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=arguments)
    set_up_loggers(Namespace(trainer=Namespace(logger=[logger]), study="s"), Path("run"), "x")
    hush([WandbLogger(project="x", offline=True, save_dir=".")])
    import wandb

    with contextlib.redirect_stderr(io.StringIO()) as err:
        wandb.Settings(anonymous=None)
    return err.getvalue()


def test_wandb_does_not_warn_of_what_lightning_tells_it(place: Path) -> None:
    assert processes.call(place, _wandb_says) == ""


def test_help_lists_what_ships(place: Path) -> None:
    lines = [
        "fit --help",
        "fit --model.help LoRABiEncoder",
        "fit --model.pooling.help",
        "fit --model.tuning.help",
        "help compare",
    ]
    (fit, lora, pooling, tuning, compare) = (
        (status, " ".join(out.split())) for status, out, _ in processes.call(place, answer, lines)
    )
    assert {own[0] for own in (fit, lora, pooling, tuning, compare)} == {0}
    assert "embedlab.strategies.freeze.Freeze" in fit[1]
    assert "base.Embedder" not in fit[1]
    assert f"these ship: {POOLINGS}, default: embedlab.pooling.weighted_mean" in lora[1]
    assert f"these ship: {LOSSES}" in lora[1]
    assert not [own for own in ("Callable", "subclass", "torch.") if own in lora[1]]
    for name in POOLINGS.split(", "):
        assert name in pooling[1]
    for name in ("Frozen", "BitFit", "LoRA", "Full"):
        assert f"embedlab.backbone.tuning.{name}" in tuning[1]
    assert compare[1].startswith("usage: embedlab compare")


# Damaged runs -----------------------------------------------------------------------------------------------

GOOD = {"spearman": 0.5, "pearson": 0.5, "pairs": 4, "undefined": None}
RESULT = {"schema_version": 1, "label": "x", "study": "s", "seed": 0, "metrics": {"test/a": GOOD}}
DAMAGED: dict[str, str | bytes] = {
    "no-metrics": json.dumps({**RESULT, "metrics": None}),
    "text-as-score": json.dumps({**RESULT, "metrics": {"test/a": {**GOOD, "spearman": "high"}}}),
    "nan-as-text": json.dumps({**RESULT, "metrics": {"test/a": {**GOOD, "spearman": "NaN"}}}),
    "nan": json.dumps({**RESULT, "metrics": {"test/a": {**GOOD, "spearman": float("nan")}}}),
    "list-as-metrics": json.dumps({**RESULT, "metrics": [1]}),
    "null-as-metric": json.dumps({**RESULT, "metrics": {"test/a": None}}),
    "list-as-backbone": json.dumps({**RESULT, "backbone": ["small"]}),
    "text-as-seconds": json.dumps({**RESULT, "seconds": {"train": "long"}}),
    "text-as-notes": json.dumps({**RESULT, "notes": "note"}),
    "text-as-seed": json.dumps({**RESULT, "seed": "zero"}),
    "huge": json.dumps({**RESULT, "metrics": {"test/a": {**GOOD, "spearman": 10**400}}}),
    "no-json": "{",
    "no-object": "[]",
    "no-utf-8": b'{"label": "\xff"}',
    "deep": "[" * 100_000,
}


def write_run(folder: Path, result: str | bytes) -> None:
    folder.mkdir(parents=True)
    (folder / runs.RESULT).write_bytes(result if isinstance(result, bytes) else result.encode())


def report(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Report on a folder; give the lines."""
    assert cli.main(["report", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_a_damaged_run_is_one_line_and_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "s" / "good" / "seed-0", json.dumps({**RESULT, "label": "good"}))
    for name, result in DAMAGED.items():
        write_run(tmp_path / "s" / name / "seed-0", result)
    (tmp_path / "s" / "folder" / "seed-0" / runs.RESULT).mkdir(parents=True)
    for name, status in {
        "no-state": "{}",
        "text-as-pid": '{"state": "running", "pid": "x"}',
        "no-status": "\x00",
    }.items():
        (tmp_path / "s" / name / "seed-0").mkdir(parents=True)
        (tmp_path / "s" / name / "seed-0" / runs.STATUS).write_text(status)
    out = report(tmp_path, capsys)
    assert re.search(r"good .*50\.0", out)
    for name in (*DAMAGED, "folder", "no-state", "text-as-pid", "no-status"):
        lines = [line for line in out.splitlines() if line.startswith(f"failed: {name}, seed 0: ")]
        assert len(lines) == 1, name
        assert str(tmp_path / "s" / name / "seed-0") in lines[0]


def test_damaged_predictions_and_configuration_are_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, config in enumerate(["a: [", "model: {1: x, a: y}\n2024-01-01: 3\n"]):
        folder = tmp_path / "s" / f"x{seed}" / f"seed-{seed}"
        write_run(folder, json.dumps({**RESULT, "label": f"x{seed}", "seed": seed}))
        (folder / runs.CONFIG).write_text(config)
        (folder / runs.PREDICTIONS).mkdir()
        (folder / runs.PREDICTIONS / "test-a.parquet").write_bytes(b"PAR1 no more")
    out = report(tmp_path, capsys)
    assert "no interval: test-a.parquet is damaged for seed-0" in out
    assert len(re.findall(r"^\W*x[01] ", out, re.MULTILINE)) == 2


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make_place(Path(folder))
        for line, (_, _, err) in zip(CASES, processes.call(Path(folder), answer, list(CASES)), strict=True):
            print(f"| `embedlab {line}` | {err.strip().removeprefix('embedlab: error: ').replace(folder, '.')} |")
