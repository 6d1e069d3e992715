"""``rankprobe compare``: what two tunings share, direction by direction."""

from __future__ import annotations

import re
from pathlib import Path

import click

from rankprobe.cli import options as o

# A table's columns by their names in by_kind, in short words that wrap on a narrow terminal.
_HEADS = {
    "r_x": "r X", "r_y": "r Y", "phi_1_1": "φ (1,1)", "phi_min_min": "φ all", "phi_min_min_random_mean": "φ all random",
    "above_random": "above random", "angle_min_deg": "least angle °", "share_x_in_y": "X in Y %",
    "share_y_in_x": "Y in X %", "factor_x": "factor X", "factor_y": "factor Y", "intruders_x": "intruders X",
    "intruders_y": "intruders Y", "mean_phi": "mean φ", "largest_phi": "largest φ",
}  # fmt: skip
_LEGEND = (
    "r: directions compared; φ, from 0 to 1: the share of them in common, of the first alone and of all that the "
    "smaller side has; above random: matrices whose φ all is above the 95 % interval of random subspaces; X in Y: "
    "energy of X's update inside Y's directions"
)


@click.command(
    epilog="\b\nExamples:\n"
    "  rankprobe compare adapter-r8 adapter-r64\n"
    "  rankprobe compare tuned-seed0 tuned-seed1 --base bert-base-uncased --top 16\n"
    "  rankprobe compare lora-r8-qv-eval-s0-0123456789 full-eval-s0-0123456789\n"
    "  rankprobe compare adapter adapter --across-layers --of left"
)
@click.argument("x", metavar="X")
@click.argument("y", metavar="Y")
@click.option("--base", metavar="W0", default=None,
              help="What X and Y were tuned from. Needed for full models; a run's own is found.")
@click.option("--of", type=click.Choice(["right", "left", "A"]), default="right", show_default=True,
              help="Directions: dW's right or left singular vectors; A: those of the factors A, adapters only.")
@click.option("--top", type=click.IntRange(min=1), default=None,
              help="Directions at most.  [default: 64 of a dense dW, an adapter's all]")
@click.option("--across-layers", is_flag=True, help="Also every layer of X with every layer of Y.")
@click.option("--include", metavar="REGEX", default=None, help="Only matrices whose name has it.")
@click.option("--exclude", metavar="REGEX", default=None, help="No matrices whose name has it.")
@click.option("--alpha", type=float, default=None, help="LoRA's alpha of X and Y, for files that do not hold it.")
@click.option("--alpha-x", type=float, default=None, help="Of X alone.")
@click.option("--alpha-y", type=float, default=None, help="Of Y alone.")
@click.option("--intruder-k", type=click.IntRange(min=1), default=10, show_default=True,
              help="Intruders among how many left singular vectors of W1.")
@click.option("--intruder-eps", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True,
              help="A vector is one if its largest |cosine| with W0's is below.")
@click.option("--no-intruders", is_flag=True, help="Leave intruder dimensions out: they take longest.")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True,
              help="On the terminal: medians by kind, or every matrix.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), default=None, help="CPU threads.  [default: all cores]")
@click.option("--out", type=click.Path(path_type=Path), default=None,
              help="Output folder.  [default: results/compare-X-Y]")
@o.runs_option
def compare(x: str, y: str, base: str | None, form: str, device: str, threads: int | None, out: Path | None,
            runs: Path, **options) -> None:
    """Compare two tunings X and Y of one base, matrix by matrix.

    X and Y are adapters or full models: two seeds, two ranks, LoRA and full fine-tuning. Each is a Hugging Face folder,
    a PEFT adapter, a file, a rankprobe run or a hub id. Written: how far the directions of their updates overlap (φ,
    principal angles), what random subspaces would give, how each amplifies W0, and directions that W0 did not have.
    """
    import torch

    from rankprobe.analysis.compare import collect, compare_sides
    from rankprobe.analysis.compare_inputs import open_sides
    from rankprobe.analysis.compare_tables import by_kind
    from rankprobe.cli.command import command_line
    from rankprobe.cli.progress import TerminalObserver
    from rankprobe.cli.show import print_table
    from rankprobe.errors import UsageError
    from rankprobe.experiment.output import claim_output, read_plan, release_output
    from rankprobe.experiment.parts import Parts
    from rankprobe.experiment.store import lock
    from rankprobe.report.compare_page import answer, write_comparison, write_tables
    from rankprobe.training.precision import pick_device

    device = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    alphas = {side: options[f"alpha_{side}"] if options[f"alpha_{side}"] is not None else options["alpha"]
              for side in "xy"}
    sides = open_sides(x, y, base, of=options["of"], include=options["include"], exclude=options["exclude"],
                       alpha_x=alphas["x"], alpha_y=alphas["y"], runs=runs)
    what = {"of": options["of"], "top": options["top"], "across_layers": options["across_layers"],
            "intruder_k": 0 if options["no_intruders"] else options["intruder_k"]}
    eps = options["intruder_eps"]
    out = out or Path("results") / "-".join(["compare", *map(_slug, sides.labels[: 1 if sides.same else 2])])
    name = f"compare {' '.join(sides.labels)}"
    parts_of = f"{sides.fingerprint} {what} {options['include']} {options['exclude']}"
    settings = {"command": command_line(), "inputs": _short_hash(sides.fingerprint)}
    earlier = read_plan(out) if out.is_dir() else None
    new = not out.exists()
    claim_output(out, {"name": name, **settings})
    if earlier and earlier.get("inputs") != settings["inputs"]:
        click.echo(f"rankprobe: warning: {out} showed other inputs of these names; its tables are replaced.", err=True)
    for note in sides.notes:
        click.echo(f"rankprobe: note: {note}.", err=True)

    costs = {a.name: a.cost + (0 if sides.same else b.cost) for a, b in sides.pairs}
    unit = max(1.0, sum(costs.values()) / 1e6)  # the bar counts whole steps
    observer = TerminalObserver(sum(round(cost / unit) for cost in costs.values()))
    done: list[str] = []

    def progress(matrix) -> None:
        observer.begin(matrix.name, round(costs[matrix.name] / unit))
        observer.stage("matrix", len(done) + 1, len(costs))
        done.append(matrix.name)

    with lock(out):
        parts = Parts(out, parts_of)
        try:
            with observer.live():
                found = compare_sides(sides, **what, intruder_eps=eps, device=device, progress=progress, store=parts)
        except KeyboardInterrupt:
            if len(parts):
                write_tables(out, collect(sides, parts, of=what["of"], intruder_eps=eps))
            raise
        except UsageError:
            # The inputs are at fault, and corrected ones are other inputs: nothing of this is to be taken up.
            parts.clear()
            if new:
                release_output(out)
            raise
        write_tables(out, found)
        write_comparison(out, found, settings=_settings(settings["command"], sides, what, eps, device))
        parts.clear()
        (out / ".lock").unlink(missing_ok=True)
    if form == "csv":
        click.echo(found.matrices.to_csv(index=False), nl=False)
    elif form == "json":
        click.echo(found.matrices.to_json(orient="records", indent=1))
    else:
        table, labels = by_kind(found), " and ".join(dict.fromkeys(found.labels))
        title = f"{labels}: {len(found.matrices)} matrices, medians by kind"
        against_base = [c for c in ("factor_x", "factor_y", "intruders_x", "intruders_y") if c in table]
        if found.same:  # φ is 1
            alone = [c for c in against_base if c.endswith("_x")]
            print_table(_headed(table[["kind", "matrices", "r_x", *alone]]), title=title)
        else:
            print_table(
                _headed(table.drop(columns=against_base)),
                title=title,
                notes=_LEGEND,
            )
            if against_base:
                print_table(
                    _headed(table[["kind", "matrices", *against_base]]),
                    title="Against W0",
                    notes="factor: ‖dW‖ by what W0 has on the same directions, ‖UᵀW0V‖; intruders: leading directions "
                    f"of W1 that W0 did not have, in the mean of {what['intruder_k']} a matrix",
                )
        _print_layers(found)
        for line in answer(found, notes=False):
            click.echo(line)
    click.echo(str(out / "report.html"), err=form != "table")


def _headed(table):
    shares = [c for c in ("share_x_in_y", "share_y_in_x") if c in table]
    table = table.assign(**{c: 100 * table[c] for c in shares})
    return table.rename(columns=lambda c: _HEADS.get(c, c.replace("_", " ")))


def _print_layers(found) -> None:
    from rankprobe.analysis.compare_tables import across_layers
    from rankprobe.cli.show import print_table

    table = across_layers(found)
    if len(table):
        shown = _headed(table.drop(columns=["matrix"]))
        print_table(shown, title="φ(r, r) between layers", notes="random low, high: 95 % interval of the mean")


def _settings(command: str, sides, what: dict, eps: float, device: str) -> dict[str, str]:
    """What the page tells of how it was made."""
    from rankprobe.experiment.provenance import git_state, versions

    packages = versions()
    commit = git_state()
    bases = dict.fromkeys(side.base.label for side in (sides.x, sides.y) if side.base is not None)
    return {
        "command": command,
        "base": ", ".join(bases) or "not at hand",
        "directions at most": str(what["top"] or "64 of a dense dW, an adapter's all"),
        "intruders": f"k = {what['intruder_k']}, eps = {eps:g}" if what["intruder_k"] else "left out",
        "device": device,
        "versions": ", ".join(f"{name} {packages[name]}" for name in ("rankprobe", "torch", "numpy", "scipy")),
        **({"commit": commit["commit"][:12] + (" and changes" if commit["dirty"] else "")} if commit["commit"] else {}),
    }


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", label).strip("-.") or "input"


def _short_hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]
