"""What people see in a terminal: progress with time left, and tables."""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datafree.cli.runtimes import runtime_rows
from datafree.config import RunConfig
from datafree.errors import (
    MemoryWarning,
    NetworkWarning,
    ReportWarning,
    UntrustedCodeError,
    VerdictError,
)
from datafree.progress.bars import Bars
from datafree.runs.choices import learns_from_images
from datafree.runs.weak import lossy

if TYPE_CHECKING:
    from datafree.runs.methods import Explained
    from datafree.verdict.estimate import Verdict

R = TypeVar("R")

out = Console()
err = Console(stderr=True)
_TEXT_WIDTH = 100
MEASURES = {
    "top1": ("top-1", " %"),
    "miou": ("mean IoU", " %"),
    "map": ("mAP", " %"),
    "metric": ("measure", ""),
}
"""What networks can reach on labelled images: its name and unit."""
_OWN = (MemoryWarning, NetworkWarning, ReportWarning)
_NAMES = 6  # layers a row of the table of bits names
_MANY_UNDECIDED = 0.25  # share of the roundings from which on more steps are worth their time


progress = Bars(lambda: err)
"""Shows bars on standard error; a `datafree.progress.Progress`."""


@contextmanager
def warnings_as_lines() -> Generator[None]:
    """Show our own warnings as one line each, without file and line of the code."""
    with warnings.catch_warnings():
        for kind in _OWN:
            warnings.simplefilter("always", kind)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, _OWN):
                line = f"[bold yellow]note:[/bold yellow] {escape(str(message))}"
                err.print(line, highlight=False, soft_wrap=True)
            else:
                shown(message, category, *rest)

        warnings.showwarning = show
        yield


def with_trust(call: Callable[[bool], R], trust_code: bool) -> R:
    """What `call` returns; whoever sits at a terminal is asked whether code of a file may run.

    Args:
        call: takes whether such code may run.
        trust_code: it may, and nobody is asked.

    Raises:
        UntrustedCodeError: it may not, or nobody is there to ask.
    """
    try:
        return call(trust_code)
    except UntrustedCodeError as error:
        if not (sys.stdin.isatty() and err.is_terminal):
            raise
        err.print(f"{error.where} would run the code {error.code}", markup=False, soft_wrap=True)
        if not click.confirm("Have you read it, and may it run?", err=True):
            raise
    return call(True)


def check_code(
    config: RunConfig, where: Path, trust_code: bool, given: Container[str] = ()
) -> None:
    """Refuse, or ask at a terminal, to run code that the configuration in the file `where` names.

    `given` are the fields somebody typed in place of the file's. Errors as of `with_trust`.
    """
    from datafree.runs.trust import check_trusted

    with_trust(
        lambda trusted: check_trusted(config, where, trust_code=trusted, given=given), trust_code
    )


def run_and_show(config: RunConfig, output: Path, *, force: bool) -> None:
    """Carry a run out, with bars, and show what came of it.

    Args:
        config: of the run.
        output: folder to write.
        force: replace an earlier run there.
    """
    from datafree.runs.judging import next_command
    from datafree.runs.searching import carry_out
    from datafree.runs.snippet import purpose

    failed: VerdictError | None = None
    try:
        result = carry_out(config, folder=output, force=force, progress=progress, tell=out.print)
    except VerdictError as error:
        failed, result = error, error.result
    if result.folder is None:
        return  # one of several processes, and not the first
    show_result(result.config, result.metrics, result.seconds, images=len(result.images))
    names = sorted(path.name for path in output.iterdir())
    out.print(f"written to [bold]{escape(str(output))}[/bold]: {', '.join(names)}")
    if (code := result.snippet()) is not None:
        out.print(f"\n[bold]To {purpose(result.spec)} with it:[/bold]\n")
        out.print(code, markup=False, highlight=False, soft_wrap=True)
    show_verdict(result.verdict, next_command(result.config, output))
    if failed is not None:
        raise failed


def show_verdict(verdict: Verdict | None, then: str) -> None:
    """The last lines of a run: the verdict, and of a poor one the command to try next, `then`."""
    if verdict is None:
        return
    colour = {"good": "green", "check": "yellow", "poor": "red"}[verdict.word]
    word = f"[bold {colour}]verdict: {verdict.word}[/bold {colour}]"
    line = f"{word}, {escape(verdict.why)}"
    if verdict.word == "poor":
        line += f"; try next: [bold]{escape(then)}[/bold]"
    out.print(line, highlight=False, soft_wrap=True)


def plan_and_show(config: RunConfig, output: Path, *, force: bool) -> None:
    """Show what a run would do and take; nothing is written. Arguments as of `run_and_show`."""
    from datafree.runs.dry import plan_run

    planned = plan_run(config, output, force=force, progress=progress)
    found = planned.forecast
    show_result(planned.config, {}, found.seconds, images=planned.images)
    out.print(f"{found}, with about {found.memory / 1e9:.1f} GB of memory", highlight=False)
    if config.max_drop is not None:
        out.print("this is one try: --max-drop makes several, each without files", highlight=False)
    kept = ", the network itself among it" if config.teacher_kept else ""
    out.print(
        f"would be written to {output}{kept}; nothing was done", highlight=False, markup=False
    )


def _image_source(config: RunConfig, metrics: Mapping[str, Any]) -> str:
    """Who made the images of a run, in words; `real` and `given` ones nobody made."""
    if config.tuning is None:
        return _method(config.synthesis)
    learned_from = metrics.get("training", {}).get("fine-tuning", {}).get("learned_from")
    if learned_from is None:
        return _method(config.synthesis) if learns_from_images(config) else "the generator"
    made = str(learned_from["method"]).removesuffix(" and photos")
    return _method(config.synthesis) if made == config.synthesis.name else made


def show_result(
    config: RunConfig,
    metrics: Mapping[str, Any],
    seconds: Mapping[str, float],
    *,
    images: int,
) -> None:
    """The table at the end of a run: what was chosen, what was measured, where the time went.

    `images` is the number of images the run had.
    """
    scheme = config.scheme
    label = "float student" if config.float_student else scheme.label
    table = Table(title=escape(f"{config.model} {label}"), show_header=False)
    table.add_column(style="bold")
    table.add_column()
    weights = "symmetric" if scheme.symmetric_weights else "affine"
    activations = "float" if scheme.activations == 32 else f"{scheme.activations} bits"
    chosen = {
        "equalization": config.equalize,
        "ReLU6 replaced": config.replace_relu6,
        "bias absorption": config.absorb_biases,
        f"outlier splitting ({config.split_outliers:g})": config.split_outliers,
        f"{config.bias_rule} bias correction": config.bias_rule,
    }
    corrections = [name for name, wanted in chosen.items() if wanted]
    bits = f"{scheme.weights} bits"
    if "allocation" in metrics:
        bits = f"mixed, {metrics['allocation']['average_bits']:.2f} bits on average"
    own = {} if "allocation" in metrics else scheme.layer_bits
    given = ", ".join(f"{name}={width}" for name, width in own.items())
    source = _image_source(config, metrics)
    quantized = [
        (
            "weights",
            f"{bits}, {weights}, per {scheme.weight_granularity}, {scheme.weight_range} ranges",
        ),
        ("activations", f"{activations}, {scheme.placement.replace('_', ' ')}"),
        *([("layers with bits of their own", given)] if given else []),
        *([("kept in float", ", ".join(metrics["keep_float"]))] if "keep_float" in metrics else []),
        ("target", scheme.target),
        ("layer policy", scheme.policy),
        *([("protocol", config.protocol_told)] if config.protocol_told else []),
        ("images", _images(config, source) if images else "none"),
        ("calibrator", _method(config.calibration)),
        ("corrections", ", ".join(corrections) or "none"),
        ("rounding", _method(config.rounding) if config.rounding else "nearest"),
    ]
    tuned = [] if config.tuning is None else [("training", _method(config.tuning))]
    if config.student is not None:
        tuned.insert(0, ("student", config.student))
    rows = [
        *([] if config.float_student else quantized),
        *tuned,
        ("seed", str(config.seed)),
        *measured_rows(metrics),
        ("time", ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())),
    ]
    for name, value in rows:
        table.add_row(name, escape(value))
    out.print(table)
    if "allocation" in metrics:
        found = metrics["allocation"]
        title = f"Weights of {found['weight_bytes'] / 1000:.1f} kB, for {found['budget']}"
        show_table(title, ("bits", "share of weights", "layers"), bits_rows(found))


def bits_rows(allocation: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Bits, share of all weights and names of the layers that have them, by increasing bits."""
    layer_bits, elements = allocation["layer_bits"], allocation["elements"]
    rows: list[tuple[str, str, str]] = []
    for bits in sorted(set(layer_bits.values())):
        layers = [path for path in layer_bits if layer_bits[path] == bits]
        share = sum(elements[path] for path in layers) / sum(elements.values())
        names = ", ".join(layers[:_NAMES])
        more = f" and {len(layers) - _NAMES} more" if len(layers) > _NAMES else ""
        rows.append((str(bits), f"{100 * share:.1f} %", names + more))
    kept = [path for path in elements if path not in layer_bits]
    if kept:
        share = sum(elements[path] for path in kept) / sum(elements.values())
        rows.append(("float", f"{100 * share:.1f} %", ", ".join(kept)))
    return rows


def measured_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of everything measured, as people read it."""
    task = metrics.get("task", "classes")
    rows = [] if task == "classes" else [("task", str(task))]
    rows += [("note", line) for line in metrics.get("notes", ())]
    rows += _reached(metrics)
    for name, phase in metrics.get("training", {}).items():
        rows.append((name, _phase(phase)))
    if "held_out" in metrics:
        held = metrics["held_out"]
        text = _differences(held, task)
        rows.append((f"teacher and student on {held['images']} held-out images", text))
    rows += _layers(metrics)
    if rounded := sum(unit["rounded"] for unit in metrics.get("reconstruction", ())):
        share = sum(unit["undecided"] for unit in metrics["reconstruction"]) / rounded
        advice = "; more iterations would settle them" if share > _MANY_UNDECIDED else ""
        rows.append(("roundings left undecided", f"{100 * share:.1f} %{advice}"))
    if metrics.get("bias_not_corrected"):
        rows.append(("input mean not known", ", ".join(metrics["bias_not_corrected"])))
    for suffix in ("onnx", "pt2", "pte", "tflite"):
        if suffix in metrics:
            rows.append((suffix, metrics[suffix]["line"]))
            rows.extend(("", note) for note in metrics[suffix]["notes"])
    if "teacher_file" in metrics:
        rows.append(("teacher.pt2", _kept(metrics["teacher_file"])))
    if "runtime" in metrics:
        rows.extend(runtime_rows(metrics["runtime"]))
    return rows


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A title line, then a table: `rows` of as many cells as `columns`."""
    out.print(escape(title), style="italic", highlight=False)
    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


def show_method(method: Explained) -> None:
    """A method with its text, where it comes from, and its hyper-parameters."""
    width = min(out.width, _TEXT_WIDTH)
    out.print(f"[bold]{escape(method.name)}[/bold], {method.kind}", highlight=False)
    for paragraph in method.text.replace("`", "").split("\n\n"):
        _print_plain("")
        if paragraph[:1].isspace():  # a formula in lines of its own
            _print_plain(paragraph)
        else:
            _print_plain(textwrap.fill(" ".join(paragraph.split()), width))
    if method.citation:
        _print_plain("\n" + textwrap.fill(f"From: {method.citation}", width))
    _print_plain("\nHyper-parameters:" if method.fields else "\nNo hyper-parameters.")
    for field in method.fields:
        facts = [f"default {field.default}"] if field.default else []
        facts += [field.allowed] if field.allowed else []
        out.print(
            f"  [bold]{escape(field.name)}[/bold]  {escape('; '.join(facts))}", highlight=False
        )
        indent = " " * 6
        text = textwrap.fill(
            field.meaning.replace("`", ""), width, initial_indent=indent, subsequent_indent=indent
        )
        _print_plain(text)


def _print_plain(text: str) -> None:
    """Text as it is: no markup, no wrapping."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _reached(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What networks reach on labelled images."""
    return [
        (
            f"{title} on {metrics['test_images']} images",
            ", ".join(f"{network} {value:.2f}{unit}" for network, value in metrics[name].items()),
        )
        for name, (title, unit) in MEASURES.items()
        if name in metrics
    ]


def _differences(held: Mapping[str, Any], task: str) -> str:
    """How teacher and student differ, in what the network's task has."""
    told: list[str] = []
    if "agreement" in held:
        of = " of positions" if task == "dense classes" else ""
        told += [f"{held['agreement']:.1f} % same prediction{of}", f"KL {held['kl']:.4f}"]
    if "error" in held:
        off = f"numbers off by {100 * held['error']:.2g} % of their deviation"
        told += [off, f"cosine {held['cosine']:.4f}"]
    return ", ".join(told)


def _layers(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which layer to look at: by itself, or by its noise where that was not measured."""
    if "isolation" in metrics:
        return _weakest(metrics["isolation"])
    noise = lossy(metrics)
    if not noise:
        return []
    name, value = min(noise.items(), key=lambda item: item[1])
    return [("noisiest layer", f"{name}, {value:.1f} dB")]


def _weakest(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The layer that a student loses most by, and what to do about it."""
    path, total = found["weakest"], found["total"]
    own = found["by_layer"][path]
    text = f"{path}: divergence {own['alone']:.3g} by itself, {own['without']:.3g} instead of"
    text += f" {total:.3g} without it"
    if found["measured"] < found["layers"]:
        text += f" ({found['measured']} of {found['layers']} layers measured)"
    rows = [("weakest layer", text)]
    if "proposal" in found:
        rows.append(("", f"try {found['proposal']}"))
    return rows


def _kept(told: Mapping[str, Any]) -> str:
    if "error" in told:
        return str(told["error"])
    return f"{told['bytes'] / 1000:.0f} kB, the network itself; --no-keep-teacher leaves it out"


def _phase(phase: Mapping[str, Any]) -> str:
    text = f"{phase['steps']} steps in {phase['seconds']:.0f} s"
    if "best" in phase:
        best, last = phase["best"], phase["last"]
        text += f"; agreement {best['agreement']:.1f} % at step {best['step']:.0f} (best),"
        text += f" {last['agreement']:.1f} % at the end"
    return text


def _method(chosen: Any) -> str:
    options = ", ".join(f"{name}={value}" for name, value in chosen.options.items())
    return f"{chosen.name} ({options})" if options else chosen.name


def _images(config: RunConfig, source: str) -> str:
    """How many images there were, and where they came from."""
    photos = config.photo_count
    made = f"{config.images - photos} by {source}" if photos < config.images else ""
    return ", ".join(filter(None, (made, f"{photos} photos" if photos else "")))
