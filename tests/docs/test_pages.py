"""The README and the pages of `docs/`: their code runs, their links lead somewhere."""

import ast
import importlib.util
import inspect
import pathlib
import re

import keras
import numpy as np
import programs
import pytest
import scipy.sparse

import dbl_tf
from dbl_tf import methods, models, parameters, settings

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
)
README_LINES, PAGE_LINES, LINE_LENGTH = 120, 400, 100

# Phrases that have a better form, by that form.
REPLACED = {
    "require TensorFlow": ["are TensorFlow's"],
    "diverge at higher rates": ["which bear", "bears it"],
    "equivalent up to rounding": ["the same but for rounding"],
    "accepts only its original configuration": ["in a directory that is taken"],
    "Pass integer labels": ["are known to be 0 or 1", "labels of floating numbers"],
    "does not change results": ["no figure depends on it"],
    "correct for over-sampled": ["what re-sampling overdoes", "once they are low enough"],
    "SGD momentum.": ["Of SGD"],
    "shared between runs": ["For what other runs can use"],
    "depends on the method": ["as the method has it if not given"],
    "works the same way": ["trains likewise"],
    "fix …": ["is said right", "are said right"],
    "next to it": ["what stands beside"],
    "not found": ["is missing from its folder"],
    "labels": ["tags"],
}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text):
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)


def code_blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)


def rows_of(page, heading):
    """Cells of the table under a heading, row by row, without its head."""
    section = read(page).partition(f"\n{heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE).group().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def anchors_of(page):
    headings = re.findall(r"^#+ (.+)$", without_code(read(page)), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


LABEL_TYPES = {
    "dense": np.asarray,
    "sparse": scipy.sparse.csr_matrix,
    "array": scipy.sparse.csr_array,
}


def readme_data(counts, num_examples):
    """Images whose rows each light up with a class, labels, and a model."""
    random = np.random.default_rng(0)
    labels = np.zeros((num_examples, len(counts)), int)
    start = 0
    for column, count in enumerate(counts):
        labels[start : start + count, column] = 1
        start += max(1, count - count // 5)  # some have the next label too
    images = random.normal(size=(num_examples, 3, 4)) + 3 * labels[:, :, None]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3, 4)), keras.layers.Flatten(), keras.layers.Dense(3, name="logits")]
    )
    return (4 * images).astype("float32"), labels, model


@pytest.mark.parametrize("labels_as", LABEL_TYPES)
def test_readme_python_runs_as_it_stands(labels_as):
    train_images, labels, model = readme_data((256, 64, 16), 320)
    names = {"train_images": train_images, "model": model}
    names["train_labels"] = LABEL_TYPES[labels_as](labels)

    exec("\n".join(code_blocks("README.md", "python")), names)

    assert isinstance(model.loss, dbl_tf.DistributionBalancedLoss)
    # An epoch of re-sampling is ⌈C · max(n)/4⌉ draws: 3 · 256/4 = 192, six batches of 32.
    assert names["steps"] == 6 and int(model.optimizer.iterations) == 8 * 6
    losses = model.history.history["loss"]
    assert losses[-1] < losses[0] / 2
    scores = model.predict(train_images, verbose=0)
    assert dbl_tf.metrics.mean_average_precision(labels, scores)["total"] > 2 * labels.mean()


def test_readme_python_ends_on_data_that_are_smaller_than_a_batch():
    train_images, labels, model = readme_data((4, 2, 1), 7)
    names = {"train_images": train_images, "train_labels": labels, "model": model}
    exec("\n".join(code_blocks("README.md", "python")), names)
    assert int(model.optimizer.iterations) == 8  # a step in each epoch


def test_guide_python_runs_as_it_stands(tmp_path, monkeypatch):
    """It loads the model of a run, which this one stands for."""
    monkeypatch.chdir(tmp_path)
    backbone = models.build_backbone("small_resnet", 16, options={"width": 4})
    network = models.join(backbone, models.build_head(backbone.output_shape[-1], 3))
    pathlib.Path("runs/mine").mkdir(parents=True)
    network.save("runs/mine/model.keras")
    names = {"images": np.zeros((2, 16, 16, 3), np.float32)}

    blocks = code_blocks("docs/guide.md", "python")
    exec("\n".join(blocks), names)

    expected = keras.ops.sigmoid(network(names["images"]))
    np.testing.assert_allclose(names["probabilities"], expected, rtol=1e-5)


@pytest.mark.parametrize("page", [page for page in PAGES if code_blocks(page, "python")])
def test_python_on_pages_parses_and_imports_what_exists(page):
    for block in code_blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                assert all(importlib.util.find_spec(name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name) or importlib.util.find_spec(
                        f"{node.module}.{name.name}"
                    )


def test_readme_sets_up_with_two_commands():
    commands = [line for block in code_blocks("README.md", "bash") for line in block.splitlines()]
    assert [line for line in commands if "pip install" in line] == [
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && python train.py",
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[tests]' && "
        'python -m pytest -m "not slow"',
    ]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / place if place else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        if anchor:
            linked_page = linked.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors_of(linked_page), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_short_and_narrow(page):
    assert len(read(page).splitlines()) <= (README_LINES if page == "README.md" else PAGE_LINES)
    for line in without_code(read(page)).splitlines():
        is_prose = not re.match(r" *(\||!\[|`[^`]*`$)", line)
        assert not is_prose or len(line) <= LINE_LENGTH, line


@pytest.mark.parametrize("page", PAGES)
def test_pages_use_the_house_words(page):
    text = " ".join(without_code(read(page)).split())
    for better, phrases in REPLACED.items():
        for phrase in phrases:
            assert not re.search(rf"\b{re.escape(phrase)}\b", text), f"{phrase}: write {better}"


def test_guide_describes_every_method():
    described = [cells[0].strip("`") for cells in rows_of("docs/guide.md", "## Methods")]
    assert described == list(methods.METHODS)


def test_guide_describes_every_parameter_of_the_losses():
    rows = {
        cells[0].strip("`").removeprefix("--"): cells
        for cells in rows_of("docs/guide.md", "## Parameters of the losses")
    }
    fields = list(settings.settings_of(parameters.LossParameters))
    assert list(rows) == [settings.flag_name(field) for field, _ in fields]
    for field, setting in fields:
        _, symbol, default, *_ = rows[settings.flag_name(field)]
        assert symbol == setting.symbol
        assert type(settings.default_of(field))(default.strip("`")) == settings.default_of(field)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/architecture.md", "docs/data.md", "docs/guide.md"]
)
def test_flags_on_pages_exist(page):
    known = set(re.findall(r"`--(?:\[no\])?(\w+)`", read("docs/command_line.md")))
    known |= {f"no{name}" for name in re.findall(r"`--\[no\](\w+)`", read("docs/command_line.md"))}
    known |= {settings.flag_name(f) for f, _ in settings.settings_of(parameters.LossParameters)}
    known |= set(inspect.signature(dbl_tf.DistributionBalancedLoss).parameters)
    # Old names that are still accepted, in the table of the changes.
    known |= set(re.findall(r"^ *\| `--(\w+)", read("CHANGELOG.md"), re.MULTILINE))
    known |= {"flagfile", "runner"}  # of absl and of Apache Beam
    assert not set(re.findall(r"(?<![\w-])--(\w+)", read(page))) - known


def test_architecture_names_files_that_exist_and_every_module():
    text = read("docs/architecture.md")
    named = set(re.findall(r"`((?:dbl_tf|pipelines|recipes|benchmarks|docs|tests)/[\w/.]*)`", text))
    assert all((ROOT / path).exists() for path in named), named
    for package in ("dbl_tf", "pipelines"):
        for module in (ROOT / package).iterdir():
            place = module.relative_to(ROOT).as_posix()
            if module.is_dir() and (module / "__init__.py").exists():
                rooms = {path for path in named if path.startswith(f"{place}/")}
                inside = {f"{place}/{path.name}" for path in module.glob("[!_]*.py")}
                assert f"{place}/" in named or inside <= rooms, place
            elif module.suffix == ".py" and module.name != "__init__.py":
                assert place in named, place


def test_page_of_flags_is_up_to_date():
    done = programs.run("-m", "docs.write_command_line", "--check")
    assert done.returncode == 0, done.stderr


def test_page_of_flags_has_every_command():
    listed = set(re.findall(r"^## (\S+)$", read("docs/command_line.md"), re.MULTILINE))
    defined = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "pipelines").rglob("*.py")
        if "run_flags.run(" in path.read_text(encoding="utf-8")
    }
    of_scripts = {f"{name}.py": f"pipelines.{name}" for name in ("train", "evaluate")}
    assert {of_scripts.get(name, name) for name in listed} == defined
