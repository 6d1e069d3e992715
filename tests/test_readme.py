"""The README says what results/ says, its commands exist with the options shown, and its Python runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rankprobe.cli.main import main
from rankprobe.experiment.output import claim_output
from rankprobe.experiment.store import files_of
from tests.report.synthetic import make_run

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "studies"))


def shell_commands():
    joined = TEXT.replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in joined.splitlines() if re.match(r"    rankprobe ", line)]


def test_results_are_those_in_results():
    import readme

    assert readme.updated(TEXT) == TEXT, "run python studies/readme.py"


@pytest.mark.parametrize("command", shell_commands())
def test_commands_exist_with_their_options(command):
    words = shlex.split(command)[1:]
    found = main.get_command(None, words[0])
    assert found is not None
    options = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {w for w in words[1:] if w.startswith("--")} <= options


def test_every_command_is_in_the_readme():
    assert all(f"| `{name}` |" in TEXT for name in main.list_commands(None))


def test_python_blocks_run():
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(code, "README.md", "exec"), {})


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in re.findall(r"make (?:[A-Z_]+=\S+ )*([a-z]+)", TEXT) if word not in ("sure",)} <= set(
        targets
    )


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("script", ["studies/learning-rates/choose.py"])
def test_the_committed_rates_are_what_the_study_chose(script, tmp_path):
    import importlib.util

    spec = importlib.util.spec_from_file_location("choose", ROOT / script)
    choose = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(choose)

    chosen = choose.as_toml(choose.choose(choose.measured()))
    assert chosen == choose.CHOSEN.read_text(encoding="utf-8")


def test_help_is_quick_enough_not_to_have_imported_torch():
    code = (
        "import sys; from rankprobe.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'pandas', 'scipy', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.endswith("[]\n")


def test_a_report_is_made_without_torch(tmp_path):
    """It takes more than a second to import, and all that a report needs is in files."""
    runs = [make_run(tmp_path / "runs", method="full", n=40), make_run(tmp_path / "runs", r=4, n=40)]
    for run in runs:
        path = tmp_path / "runs" / run["run_id"] / "run.json"
        record = json.loads(path.read_text()) | {"files": files_of(path.parent), "weights_kept": False}
        path.write_text(json.dumps(record))
    claim_output(tmp_path / "out", {"name": "t", "title": "t", "command": "t", "runs": [r["run_id"] for r in runs]})
    code = (
        "import sys; from rankprobe.cli.main import main\n"
        "try: main(['report', 'out'])\nexcept SystemExit as end: print(end.code)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.endswith("report.html\n0\nFalse\n"), done.stderr
