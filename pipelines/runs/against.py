"""Compares two exported models on the same data."""

import json
import os
import pathlib
from typing import Any

from dbl_tf.messages import first_few
from pipelines.reports import against as page
from pipelines.reports.text import labels_in_mean
from pipelines.runs import report
from pipelines.runs.config import DataConfig, ResolvedConfig
from pipelines.runs.directory import check_data, check_finished
from pipelines.runs.evaluate import SavedModel
from pipelines.runs.labeling import find_model


def of_run(run_dir: str, old: str, output_dir: str | None) -> dict[str, Any]:
    """Compares the exported model of a run with another one, on the test split of the run.

    Args:
        run_dir: the directory of the run.
        old: the directory of another run or of an exported model.
        output_dir: see `compare_models`; `RUN_DIR/against/NAME` if None, where NAME is that of the
            directory `old`, so that comparisons with several models are kept side by side.

    Returns:
        See `compare_models`.

    Raises:
        ValueError: see `compare_models`; or the data of the run have changed.
    """
    check_finished(run_dir)
    config = ResolvedConfig.load(pathlib.Path(run_dir, "config.json"))
    output_dir = output_dir or os.path.join(run_dir, "against", _name_of(old))
    return compare_models(run_dir, old, config, output_dir, run_dir)


def _name_of(model: str) -> str:
    """Returns the name of a model, after that of its run if it is a version of it."""
    *parents, last = pathlib.PurePath(os.path.abspath(model)).parts
    names = [last]
    while parents[1:] and (names[0].isdecimal() or names[0] == "saved_model"):
        names.insert(0, parents.pop())
    return "_".join(names)


def compare_models(
    new: str, old: str, config: DataConfig, output_dir: str, run_dir: str | None = None
) -> dict[str, Any]:
    """Compares two exported models on the test split of any data.

    Labels are matched by their names. Those that a model does not know, or that the data do not
    have, are left out.

    Args:
        new: the directory of a run, or of an exported model or its versions.
        old: the same of the model that `new` is compared with.
        config: the configuration of the data.
        output_dir: the directory for `against.html` with its `figures/`, `against.json`,
            `against_labels.csv` and `against_images.csv`. A comparison of the same models on the
            same data is written anew.
        run_dir: the directory of the run whose data these are, which must not have changed; None
            for other data.

    Returns:
        The content of `against.json`.

    Raises:
        ValueError: a model is not there, both are the same, they share no label with each other
            and the data, or they do not take the data; or `output_dir` holds another comparison.
    """
    paths = {"old": find_model(old), "new": find_model(new)}
    if len({os.path.realpath(path) for path in paths.values()}) == 1:
        raise ValueError(f"--against names the model that it is compared with, {paths['new']}")
    _check_output(output_dir, {"old": old, "new": new}, config.data_name)
    models = {name: SavedModel(path) for name, path in paths.items()}
    known = {name: model.class_names for name, model in models.items()}
    common = [name for name in known["new"] if name in set(known["old"])]
    if not common:
        raise ValueError(
            "the two models have no label in common: "
            + "; ".join(f"{paths[name]} knows {first_few(own)}" for name, own in known.items())
        )
    data = config.load_data(splits=("test",))
    test = data.splits["test"]
    if run_dir is not None:
        check_data(pathlib.Path(run_dir), {"test": test})
    num_features = None if test.features is None else test.features.num_features
    for name, model in models.items():
        try:
            model.check_inputs(num_features)
        except ValueError as error:
            raise ValueError(f"{paths[name]}: {error}") from None
    names = [name for name in common if name in set(data.class_names)]
    if not names:
        raise ValueError(
            f"the models have in common {first_few(common)}, and the data none of these: they have "
            f"{first_few(data.class_names)}"
        )
    probabilities, thresholds = [], []
    for model in models.values():
        columns = [model.class_names.index(name) for name in names]
        probabilities.append(model.predict(test)[:, columns])
        thresholds.append(model.thresholds.values[columns])
    statistics = models["new"].statistics
    group_of = {i: group for group, members in statistics.groups.items() for i in members}
    columns = [known["new"].index(name) for name in names]
    content = page.write(
        output_dir,
        title=f"{new} against {old} on {config.data_name}",
        models={"old": old, "new": new},
        data_name=config.data_name,
        class_names=names,
        groups=[group_of[i] for i in columns],
        train_counts=statistics.class_counts[columns].tolist(),
        labels=test.targets[:, [data.class_names.index(name) for name in names]].toarray(),
        probabilities=probabilities,
        thresholds=thresholds,
        image_names=test.names,
        read_images=report.images_reader(test),
        only={
            **{name: [n for n in own if n not in set(common)] for name, own in known.items()},
            "data": [name for name in data.class_names if name not in set(names)],
            "untested": [name for name in common if name not in set(names)],
        },
    )
    print(f"report: {pathlib.Path(output_dir, page.PAGE)}")
    return content


def _check_output(output_dir: str, models: dict[str, str], data_name: str) -> None:
    """Refuses a directory that holds the comparison of other models, or on other data."""
    path = pathlib.Path(output_dir, page.DATA)
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {name: str(content[name]) for name in models}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no comparison of two models; remove it, or choose another --output_dir"
        ) from error
    # Files of earlier versions do not name the data.
    of_data = content.get("data", data_name)
    same = all(os.path.realpath(found[name]) == os.path.realpath(models[name]) for name in models)
    if not same or of_data != data_name:
        raise ValueError(
            f"{output_dir} holds the comparison of {found['new']} with {found['old']} on "
            f"{of_data}; choose another --output_dir for this one, or remove that one"
        )


def format_summary(content: dict[str, Any]) -> str:
    """Formats the content of `against.json` for the terminal."""
    test_counts = [row["images"] for row in content["labels"].values()]
    untested = test_counts.count(0)
    in_mean = labels_in_mean(len(test_counts) - untested, untested)
    lines = [
        f"old: {content['old']}",
        f"new: {content['new']}",
        f"compared on {content['images']:,} test examples by the {len(content['labels']):,} labels "
        "that both models and the data have",
        f"{'':24}{'old':>9}{'new':>9}{'change':>9}   95 % interval",
    ]
    for heading, of_both in (("mAP %", content["mAP"]), ("micro F1 %", content["F1"])):
        numbers = [
            "–" if (value := of_both[key]) is None else f"{100 * value:{sign}.2f}"
            for key, sign in (
                ("old", ""), ("new", ""), ("difference", "+"), ("low", "+"), ("high", "+"),
            )
        ]  # fmt: skip
        lines.append(
            f"{heading:24}{numbers[0]:>9}{numbers[1]:>9}{numbers[2]:>9}   {numbers[3]} to "
            f"{numbers[4]}"
        )
    lines.append(f"mAP is over {in_mean}")
    for verdict in ("gain", "loss"):
        found = [name for name, row in content["labels"].items() if row["verdict"] == verdict]
        lines.append(f"labels with a {verdict} beyond chance: {first_few(found) or 'none'}")
    changed = (f"{number:,} {kind}" for kind, number in content["changed decisions"].items())
    return "\n".join([*lines, f"decisions: {', '.join(changed)}"])
