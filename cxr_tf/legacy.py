"""Deprecated names of flags, of settings in `config.json`, and of files of exported models.

A deprecated flag still works and prints its new name once; recorded settings are read under their
present names, so that old runs can be loaded, compared and resumed.
"""

from collections.abc import Collection, Sequence
from typing import Any

# Deprecated name of a setting: its present name. The flags have hyphens instead of underscores.
SETTINGS = {"resamples": "bootstrap_samples"}

# Setting: {deprecated value: present value}. The values of `model` apply only to commands that also
# have `score`, such as train_autoencoder.py; in other commands `model` is a folder.
VALUES = {
    "operating_point": {"half": "0.5"},
    "model": {"restoring": "denoising"},
    "score": {"removed": "residual", "mark": "lesion_mask", "context": "appearance"},
}

# Settings that old runs lack, and the values with which these runs are resumed. The values change
# no result that such a run has already computed.
ADDED_SETTINGS = {"coverage": 0.95}

# Two flags of train_autoencoder.py that `--operating-point` has replaced.
MIN_SENSITIVITY, MAX_FALSE_ALARM = "min_sensitivity", "max_false_alarm"

# The name of `training_digests.txt` in old exports.
TRAINING_DIGESTS = "learnt_from.txt"


def present_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return recorded settings under their present names and values."""
    result = {SETTINGS.get(name, name): value for name, value in settings.items()}
    for name, values in _values(result).items():
        if isinstance(result.get(name), str):
            result[name] = values.get(result[name], result[name])
    if MAX_FALSE_ALARM in result:
        alarm, sensitivity = result.pop(MAX_FALSE_ALARM), result.pop(MIN_SENSITIVITY, None)
        result["operating_point"] = _operating_point(alarm, sensitivity)
    return result


def present_arguments(
    arguments: Sequence[str], settings: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return a command line with present flags and values, and a note for each deprecated one.

    settings: the names of the command's settings.
    """
    values = _values(settings)
    words = [word for argument in arguments for word in _split(argument, values)]
    result: list[str] = []
    notes: list[str] = []
    for word in words:
        flag = result[-1] if result else ""
        present, replaces_flag = word, False
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            if name in SETTINGS:
                present = "--" + SETTINGS[name].replace("_", "-")
        elif flag in ("--max-false-alarm", "--min-sensitivity"):
            rule = _as_rule(flag[2:].replace("-", "_"), word)
            present, replaces_flag = rule, True
        else:
            present = values.get(flag[2:].replace("-", "_"), {}).get(word, word)
        if replaces_flag:
            notes.append(f"{flag} {word} is now --operating-point {present}")
            result[-1] = "--operating-point"
        elif present != word:
            value_of = "" if word.startswith("--") else f"{flag} "
            notes.append(f"{value_of}{word} is now {value_of}{present}")
        result.append(present)
    return result, list(dict.fromkeys(notes))


def _values(settings: Collection[str]) -> dict[str, dict[str, str]]:
    return {k: v for k, v in VALUES.items() if k != "model" or "score" in settings}


def _split(argument: str, values: dict[str, dict[str, str]]) -> list[str]:
    """Split `--flag=value` if the flag or the value is deprecated."""
    flag, equals, value = argument.partition("=")
    name = flag[2:].replace("-", "_")
    deprecated = name in SETTINGS or name in (MIN_SENSITIVITY, MAX_FALSE_ALARM)
    if equals and flag.startswith("--") and (deprecated or value in values.get(name, {})):
        return [flag, value]
    return [argument]


def _operating_point(max_false_alarm: float | None, min_sensitivity: float | None) -> str:
    if min_sensitivity is not None:
        return _as_rule(MIN_SENSITIVITY, str(min_sensitivity))
    if max_false_alarm is not None:
        return _as_rule(MAX_FALSE_ALARM, str(max_false_alarm))
    return "youden"


def _as_rule(name: str, value: str) -> str:
    if name == MIN_SENSITIVITY:
        return f"min-sensitivity:{value}"
    try:
        return f"min-specificity:{round(1 - float(value), 9)}"
    except ValueError:  # reported by the check of the operating point
        return f"min-specificity:{value}"
