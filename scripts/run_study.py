"""All five jobs on one catalogue, and a report of them.

python scripts/run_study.py --preset quickstart                        # phantoms, minutes
python scripts/run_study.py --data chest_xray --name mine              # overnight; again: goes on
python scripts/run_study.py --compare mine other                       # what changed, by metric
"""

from cxr_tf import cli
from cxr_tf.settings import RunStudy


def main(settings: RunStudy) -> None:
    from cxr_tf.study import compare_studies, run_study

    if settings.compare:
        compare_studies(settings)
    else:
        run_study(settings)


if __name__ == "__main__":
    cli.run(RunStudy, main)
