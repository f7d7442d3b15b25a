"""The report of a study: one self-contained HTML file, for clinicians and engineers.

    write_report(Path("logs/study/mine"))          # -> logs/study/mine/report.html

Numbers come from the runs' `metrics.json`, and pictures from their `figures/`. The template is
`report.html.jinja`.
"""

import datetime
import math
from pathlib import Path
from typing import Any

import jinja2

from cxr_tf.figures.classification import SCORE_TITLES
from cxr_tf.files import write_atomically
from cxr_tf.runs import Run
from cxr_tf.study.report_pictures import image_map, picture, pictures
from cxr_tf.study.steps import BACKBONE_NAMES, TASKS, label_of
from cxr_tf.training.epochs import format_duration

# {step that compares the backbones: title of its section}.
SECTIONS = {label_of(task): f"{title.capitalize()}?" for task, title in TASKS.items()}


def write_report(study: Path) -> Path:
    """Write `report.html` into the folder of a finished study; return its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cxr_tf", package_path="study"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "score": score,
        "value": value,
        "interval": interval,
        "metric_name": metric_name,
        "percent": percent,
        "signed": lambda number: "unknown" if number is None else f"{number:+.3f}",
        "p_value": p_value,
        "p_equals": lambda p: p_value(p) if p_value(p)[:1] == "<" else f"= {p_value(p)}",
        "count": lambda number: f"{number:,}",
        "duration": format_duration,
        "weights_name": weights_name,
        "neighbours": lambda k: "1 nearest neighbour" if k == 1 else f"{k} nearest neighbours",
    }
    page = environment.get_template("report.html.jinja").render(collect(Run(study)))
    path = study / "report.html"
    write_atomically(path, lambda p: p.write_text(page, encoding="utf-8"))
    return path


def collect(study: Run) -> dict[str, Any]:
    """Collect the metrics, settings and figures of the study's runs that the page shows."""
    logs = study.directory.parent.parent
    config, steps = study.config, study.metrics["steps"]
    runs = {s["name"]: Run(logs / s["run"]) for s in steps if "run" in s}
    for step in steps:
        step.setdefault("skipped", "")
        if "run" in step:
            model = runs[step["name"]].metrics.get("model", {})
            step["saved_model"] = model.get("saved_model", "")
    data = runs["data"].metrics
    tasks = [task_section(name, runs[name], logs) for name in SECTIONS if name in runs]
    neighbours = [
        neighbours_section(name, runs[f"{name}-knn"]) for name in SECTIONS if f"{name}-knn" in runs
    ]
    anomaly = anomaly_section(runs["autoencoder"]) if "autoencoder" in runs else None
    heatmaps = heatmaps_section(runs["heatmaps"]) if "heatmaps" in runs else None
    test = data["splits"]["test"]
    # Of a skipped task, only the comparison of the backbones is listed.
    steps_shown = [s for s in steps if not (s["skipped"] and s["name"].startswith("three-class-"))]
    contents = [
        ("summary", "Summary"),
        ("data", "Data"),
        *((t["id"], t["question"]) for t in tasks),
        *((k["id"], f"Similar cases: {k['question'].lower()}") for k in neighbours),
        *([("anomaly", "Anomaly detection")] if anomaly else []),
        *([("heatmaps", "Heatmaps")] if heatmaps else []),
        ("run", "Reproducibility"),
        ("limits", "Limitations"),
        ("glossary", "Glossary"),
    ]
    return {
        "name": config["name"],
        "date": datetime.date.today().isoformat(),
        "phantoms": config["data_is_phantom"],
        "preset": config["settings"]["preset"],
        "command": config["command"],
        "bootstrap_samples": config["settings"]["bootstrap_samples"],
        "contents": contents,
        "data": data,
        "data_figure": picture(runs["data"], "data"),
        "shortcuts_figure": picture(runs["data"], "shortcuts"),
        "problems": problems(data),
        "prevalence": 100 * (1 - test["normal"] / test["images"]),
        "tasks": tasks,
        "neighbours": neighbours,
        "anomaly": anomaly,
        "heatmaps": heatmaps,
        "served": runs["served"].metrics if "served" in runs else None,
        "steps_shown": steps_shown,
        "skipped": [s for s in steps if s["skipped"] and s["name"] in (*SECTIONS, "autoencoder")],
        "total_seconds": sum(s.get("seconds", 0.0) for s in steps),
        "facts": facts(study, runs["binary"].config),
    }


def problems(data: dict[str, Any]) -> list[str]:
    """Return the problems of the data, one sentence each."""
    sentences = [n[:1].upper() + n[1:] + "." for n in [*data["notes"], *data["warnings"]]]
    if data["unreadable"]:
        sentences.append(f"Unreadable files that were excluded: {data['unreadable']}.")
    if data["leaks"]:
        sentences.append(
            f"Patients or identical images in more than one split: {data['leaks']}. The results "
            "on the test set are too optimistic by an unknown amount."
        )
    return sentences


def task_section(name: str, compared: Run, logs: Path) -> dict[str, Any]:
    """Collect the comparison of one task: all networks, the selected one, and paired tests."""
    metrics = compared.metrics
    models = []
    for run_name, tables in metrics["models"].items():
        run = Run(logs / "classifier" / run_name)
        settings = run.config["settings"]
        models.append(
            {
                **tables,
                "title": BACKBONE_NAMES.get(
                    tables["model"]["backbone"], tables["model"]["backbone"]
                ),
                "chosen": run_name == metrics["chosen"],
                "settings": settings,
                "subgroups": run.metrics.get("subgroups"),
                "figures": {
                    **pictures(
                        run, "roc", "precision_recall", "confusion", "reliability", "most_wrong",
                        "samples", "risk_coverage", split="test",
                    ),
                    **(pictures(run, "training_curves") if settings["epochs"] else {}),
                },
            }
        )  # fmt: skip
    titles = dict(zip(metrics["models"], [m["title"] for m in models], strict=True))
    chosen = next(m for m in models if m["chosen"])
    return {
        "id": name,
        "question": SECTIONS[name],
        "classes": chosen["model"]["classes"],
        "models": models,
        "chosen": chosen,
        "transferred": all(m["settings"]["weights"].endswith("model.keras") for m in models),
        "tests": [{"title": titles[o], **t} for o, t in metrics["paired_tests"].items()],
        "figure": picture(compared, "comparison"),
    }


def neighbours_section(name: str, run: Run) -> dict[str, Any]:
    """Collect the scores of nearest neighbours and of the classifier, and the map of the images."""
    metrics = run.metrics
    return {
        "id": f"{name}-knn",
        "question": SECTIONS[name],
        "test": metrics["test"],
        "classifier": metrics["classifier"]["test"],
        "test_of_both": metrics["knn_against_classifier"],
        "model": metrics["model"],
        "grid": len(metrics["grid"]),
        "agreement": metrics["served_agreement"],
        "after": metrics["projection"]["after"],
        "before": metrics["projection"].get("before"),
        "map": image_map(run, metrics["model"]["classes"]),
        "figures": {
            **pictures(run, "neighbors", "grid", "tsne"),
            **pictures(run, "roc", "confusion", split="test"),
        },
    }


def anomaly_section(run: Run) -> dict[str, Any]:
    """Collect the autoencoder's metrics, threshold and figures."""
    metrics = run.metrics
    return {
        "test": metrics["test"],
        "subgroups": metrics.get("subgroups"),
        "model": metrics["model"],
        "settings": run.config["settings"],
        "figures": {
            **pictures(run, "roc", "scores", "typical", "missed", "false_alarms", split="test"),
            **pictures(run, "training_curves"),
        },
    }


def heatmaps_section(run: Run) -> dict[str, Any]:
    """Collect the heatmaps of the selected classifier and their measures."""
    metrics = run.metrics
    keys = ("methods", "occlusion", "images")
    return {
        **{key: metrics[key] for key in keys},
        "figures": pictures(run, "contact_sheet", "mean_by_class"),
    }


def facts(study: Run, run_config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the versions, machine and settings as rows of (name, value)."""
    config, machine = study.config, study.metrics["machine"]
    processors = f"{machine['processors']} processors, {machine['architecture']}"
    return [
        *((name, version) for name, version in run_config["packages"].items()),
        ("Python", run_config["python"]),
        ("git commit", run_config["git_commit"]),
        ("machine", ", ".join([machine["system"], processors, *machine["gpus"]])),
        ("data fingerprint", config["data_fingerprint"]),
        *(
            (name.replace("_", " "), str(value))
            for name, value in config["settings"].items()
            if name not in ("name", "compare") and value not in ("", None)
        ),
    ]


def score(table: dict[str, Any], metric: str) -> str:
    """Format a score with its interval, "0.981 (0.969 to 0.991)"."""
    return f"{value(table, metric)} ({interval(table, metric)})"


def value(table: dict[str, Any], metric: str) -> str:
    """Format a score with three decimals."""
    number = table.get(metric)
    return "unknown" if number is None else f"{number:.3f}"


def metric_name(metric: str) -> str:
    """Return the name of a metric, in the form for the beginning of a sentence."""
    name = SCORE_TITLES.get(metric, metric.replace("_", " "))
    return name[:1].upper() + name[1:]


def interval(table: dict[str, Any], metric: str) -> str:
    """Format the 95 % confidence interval of a score, "0.969 to 0.991"."""
    low, high = table["ci95"].get(metric, (None, None))
    if low is None or high is None:
        return "no interval"
    return f"{low:.3f} to {high:.3f}"


def percent(table: dict[str, Any], metric: str) -> str:
    """Format a proportion with its interval and counts, "98 % (97 to 99 %; 98 of 100)"."""
    share = table.get(metric)
    if share is None:
        return "unknown"
    low, high = table["ci95"].get(metric, (None, None))
    details = [] if low is None or high is None else [f"{100 * low:.0f} to {100 * high:.0f} %"]
    if images := table.get("counts", {}).get(metric):
        details.append(f"{images[0]} of {images[1]}")
    return f"{100 * share:.0f} %" + (f" ({'; '.join(details)})" if details else "")


def weights_name(weights: str) -> str:
    """Return the name of initial weights: imagenet, none, a file, or the run that wrote them."""
    path = Path(weights)
    return path.parent.name if path.name == "model.keras" else path.name


def p_value(p: float | None) -> str:
    """Format a p-value with two significant digits, or as "< 0.0001" if it is smaller."""
    if p is None or not math.isfinite(p):
        return "unknown"
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"
