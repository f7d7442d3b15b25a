"""The commands, with the settings that each takes and the module of the function that runs it.

A script under scripts/ runs one of them, `cxr <command>` runs any, and `cxr_tf.<command>(...)` runs
most of them from Python (`cxr_tf.api`). The function has the name of the command.
"""

import sys
from importlib import import_module
from typing import Any

from cxr_tf import cli, config

COMMANDS: dict[str, tuple[type, str]] = {
    "prepare_data": (config.PrepareData, "cxr_tf.preparation.prepare_data"),
    "train_classifier": (config.TrainClassifier, "cxr_tf.classification.train_classifier"),
    "compare_backbones": (config.CompareBackbones, "cxr_tf.classification.compare_backbones"),
    "fit_knn": (config.FitKnn, "cxr_tf.neighbors.fit_knn"),
    "train_autoencoder": (config.TrainAutoencoder, "cxr_tf.anomaly.train_autoencoder"),
    "explain": (config.Explain, "cxr_tf.explain.explain"),
    "evaluate": (config.Evaluate, "cxr_tf.evaluation.evaluate"),
    "predict": (config.Predict, "cxr_tf.evaluation.predict"),
    "score_archive": (config.ScoreArchive, "cxr_tf.archive.score_archive"),
    "export": (config.Export, "cxr_tf.evaluation.export"),
    "demo": (config.Demo, "cxr_tf.demo.demo"),
    "run_study": (config.RunStudy, "cxr_tf.study.run_study"),
    "check_served": (config.CheckServed, "cxr_tf.serving.check_served"),
    "convert_alexnet_weights": (config.ConvertAlexNetWeights, "cxr_tf.models.alexnet_conversion"),
}


# Commands whose own process needs no TensorFlow; their workers load it themselves.
WITHOUT_TENSORFLOW = ("score_archive",)


def call(command: str, settings: Any) -> Any:
    """Import the module of a command, which may load TensorFlow, and call its function."""
    module = COMMANDS[command][1]
    if getattr(settings, "archive", ""):  # fit_knn
        module = "cxr_tf.archive.similar_cases"
    return getattr(import_module(module), command)(settings)


def run(command: str) -> None:
    """Run a command with the flags in `sys.argv`, and exit; see `cli.run` for the exit codes.

    `check_served` also exits with 1 if a model does not reproduce the measured predictions.
    """

    def work(settings: Any) -> None:
        result = call(command, settings)
        if command == "check_served" and not result.metrics["agreed"]:
            sys.exit(1)

    cli.run(COMMANDS[command][0], work, load_tensorflow=command not in WITHOUT_TENSORFLOW)


def main() -> None:
    """Run `cxr <command> ...`; every command has --help."""
    names = {command.replace("_", "-"): command for command in COMMANDS}
    chosen = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if chosen in ("-h", "--help"):
        width = max(map(len, names))
        print("usage: cxr COMMAND [FLAGS]\n")
        for name, command in names.items():
            summary = (COMMANDS[command][0].__doc__ or "").partition("\n")[0]
            print(f"  {name:<{width}}  {summary}")
        print("\n`cxr COMMAND --help` lists the flags of a command.")
        return
    if chosen not in names:
        print(f"error: no command '{chosen}'; known: {', '.join(names)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"cxr {chosen}", *sys.argv[2:]]
    run(names[chosen])
