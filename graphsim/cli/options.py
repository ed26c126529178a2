"""Options that commands share, each stated once: what is asked of a source, and how it is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from graphsim.errors import UsageError
from graphsim.sources.spec.expression import Value, read_value

_PANEL = "Model and training"


def _option(*names: str, help: str, **more: Any) -> Any:  # noqa: A002 - typer's own word
    return typer.Option(*names, help=help, rich_help_panel=_PANEL, **more)


def _captured(*names: str, help: str, **more: Any) -> Any:  # noqa: A002 - typer's own word
    return typer.Option(*names, help=help, rich_help_panel="Captured models (torch:, hf:)", **more)


def _ranks(*names: str, help: str, **more: Any) -> Any:  # noqa: A002 - typer's own word
    return typer.Option(*names, help=help, rich_help_panel="Several GPUs (torch:, hf:)", **more)


SETTING: dict[str, tuple[Any, Any]] = {
    "batch": (Annotated[int | None, _option(help="Samples per (micro-)batch: param 'batch'.")], None),
    "seq": (Annotated[int | None, _option(help="Sequence length: param 'seq'.")], None),
    "settings": (
        Annotated[list[str] | None, _option("--set", metavar="NAME=VALUE", help="Set a param of the source.")],
        None,
    ),
    "optimizer": (
        Annotated[
            str,
            _option(
                help="sgd, momentum, nesterov, adam, adamw, amsgrad, adagrad, rmsprop, lion, adafactor, adam8bit; of a "
                "captured model also nadam, radam, adamax, adadelta, asgd, rprop, muon (and AdamW beside it)."
            ),
        ],
        "adamw",
    ),
    "optimizer_impl": (
        Annotated[str, _option(help="forloop, foreach or fused.", show_default="what PyTorch picks on the target")],
        "",
    ),
    "precision": (Annotated[str, _option(help="fp32, bf16, fp16, amp-bf16 or amp-fp16.")], "fp32"),
    "master_weights": (
        Annotated[bool, _option("--master-weights", help="fp32 copies of bf16/fp16 parameters.")],
        False,
    ),
    "target": (
        Annotated[str, _option(help="cuda or cpu: rules differ where PyTorch does.", show_default="cuda")],
        "",
    ),
    "gpu": (
        Annotated[
            str,
            _option(
                "--gpu",
                "--device",
                help="The card, where a rule or a price depends on it: t4, 4090, ... (graphsim gpus).",
                show_default="a100-80g",
            ),
        ],
        "",
    ),
    "mode": (Annotated[str, _option(help="train, evaluation (no update) or inference (no_grad).")], "train"),
    "accumulation": (Annotated[int, _option(help="Micro-batches per optimizer step.")], 1),
    "zero_grad": (
        Annotated[str, _option(help="Where gradients are reset: before-forward, before-backward, after-step.")],
        "before-forward",
    ),
    "set_to_none": (
        Annotated[
            bool,
            _option("--set-to-none/--no-set-to-none", help="Release gradients instead of zeroing them."),
        ],
        True,
    ),
    "grad_checkpointing": (
        Annotated[bool, _captured("--grad-checkpointing", help="Run each block again in the backward pass.")],
        False,
    ),
    "lora": (
        Annotated[
            int,
            _captured(metavar="RANK", help="Train adapters of this rank on all linear layers but the head, as peft."),
        ],
        0,
    ),
    "quant": (
        Annotated[str, _captured(help="Weights as bitsandbytes has them: int8, nf4, nf4-double.", show_default="none")],
        "",
    ),
    "kv_cache": (
        Annotated[int, _captured(metavar="TOKENS", help="Tokens in the cache, with --mode inference.")],
        0,
    ),
    "gpus": (
        Annotated[
            int, _ranks(metavar="N", help="GPUs that train it, one process each; the model may be wrapped already.")
        ],
        0,
    ),
    "rank": (
        Annotated[int, _ranks(metavar="R", help="Which process.", show_default="the one that needs most")],
        -1,
    ),
    "ddp": (Annotated[bool, _ranks("--ddp", help="Wrap the model in DistributedDataParallel.")], False),
    "zero1": (
        Annotated[bool, _ranks("--zero1", help="With --ddp: shard optimizer states (ZeroRedundancyOptimizer).")],
        False,
    ),
    "fsdp": (Annotated[bool, _ranks("--fsdp", help="fully_shard its blocks and the whole.")], False),
    "reshard": (
        Annotated[
            bool, _ranks("--reshard/--no-reshard", help="With --fsdp: free gathered blocks after their forward pass.")
        ],
        True,
    ),
    "tp": (Annotated[int, _ranks(metavar="N", help="Split linear layers of its blocks over N GPUs.")], 0),
    "training_args": (
        Annotated[Path | None, _captured(help="Hugging Face TrainingArguments in a JSON file, by their own names.")],
        None,
    ),
    "warmup": (Annotated[int, _captured(metavar="N", help="Steps before the one that is called steady.")], 1),
    "steps": (Annotated[int, _captured(metavar="N", help="Steps that are taken together as the steady one.")], 1),
    "assume": (
        Annotated[
            list[str] | None,
            _captured(metavar="FILE.py:LINE=VALUE", help="A number that this line reads and decides by."),
        ],
        None,
    ),
}
"""The options of `answers.setting.Setting`, in order: annotation and default."""

Source = Annotated[
    str,
    typer.Argument(
        help="A shipped spec's name or a spec file; torch:module:function, your own model; hf:config.json; an .onnx "
        "file; a graph's .json file (ours, or networkx node-link with 'bytes' and 'time'); a DTR log (.log, .jsonl); "
        "layered:250, a random graph of so many nodes."
    ),
]
Policy = Annotated[str, typer.Option(help="eager (when PyTorch lets go) or liveness (right after the last use).")]
Allocator = Annotated[
    str, typer.Option(help="What it would reserve: torch, cupy, bfc, arena or exact.", show_default="none")
]
AllocatorOptions = Annotated[
    str, typer.Option(metavar="NAME=VALUE,...", help="Its options, e.g. limit=16GiB,expandable_segments=True.")
]
Budget = Annotated[
    str, typer.Option(help="8GiB, 512MiB, ...; or 0.8x or 80%: that share of the peak without recompute.")
]
Costs = Annotated[
    str,
    typer.Option(
        help="What an op costs: unit, flops, or the name of a GPU (its roofline).",
        show_default="the graph's times, else the GPU's roofline, else flops",
    ),
]
First = Annotated[bool, typer.Option("--first", help="Step 1, which creates the optimizer states.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write it; -: standard output.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Also draw it: a .png, .svg or .pdf file (extra 'plot').")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Format = Annotated[
    str, typer.Option("--format", help="text, json, or a reporter of another package.", show_default="text")
]


def takes_setting(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* the options of `SETTING`; its parameter ``setting`` gets them as keywords for `asked`."""
    hints = get_type_hints(command, include_extras=True)
    own = [
        p.replace(annotation=hints[name])
        for name, p in inspect.signature(command).parameters.items()
        if name != "setting"
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [inspect.Parameter(n, keyword, default=d, annotation=a) for n, (a, d) in SETTING.items()]

    @wraps(command)
    def run(**given: Any) -> None:
        setting = {name: given.pop(name) for name in SETTING}
        setting["assume"] = _assumed(setting["assume"])
        setting["params"] = params_of(setting.pop("settings"), batch=setting["batch"], seq=setting["seq"])
        command(**given, setting=setting)

    arguments = [p for p in own if p.default is inspect.Parameter.empty]
    options = [p.replace(kind=keyword) for p in own if p.default is not inspect.Parameter.empty]
    run.__signature__ = inspect.Signature([*arguments, *options, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
    return run


def _assumed(given: list[str] | None) -> dict[str, float] | None:
    """Return the numbers that ``--assume`` gives by place.

    Raises:
        UsageError: one is no FILE.py:LINE=VALUE.
    """
    assumed = {}
    for text in given or []:
        place, equals, value = text.rpartition("=")
        try:
            assumed[place] = float(value)
        except ValueError:
            equals = ""
        if not equals or not place:
            raise UsageError(f"--assume {text[:60]!r}: write FILE.py:LINE=VALUE, for example --assume train.py:31=0.5")
    return assumed or None


def params_of(settings: list[str] | None, **named: int | None) -> dict[str, Value]:
    """Return the params that ``--set`` gives; *named* have options of their own.

    Raises:
        UsageError: one is no NAME=VALUE, or is set twice.
    """
    params: dict[str, Value] = {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(f"--set {setting[:60]!r}: write NAME=VALUE, for example --set layers=24")
        if name in params:
            raise UsageError(f"--set {name[:60]} stands twice")
        if named.get(name) is not None:
            raise UsageError(f"--{name} and --set {name}=... both set '{name}'")
        params[name] = read_value(text.strip())
    return params
