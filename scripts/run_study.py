"""All five jobs on one catalogue, and a report of them.

python scripts/run_study.py --preset quickstart                        # phantoms, minutes
python scripts/run_study.py --data chest_xray --name mine              # overnight; again: goes on
python scripts/run_study.py --compare mine other                       # what changed, by metric
"""

from cxr_tf import cli
from cxr_tf.config import RunStudy


def main(settings: RunStudy) -> None:
    if settings.compare:
        from cxr_tf.study.compare_studies import compare_studies

        compare_studies(settings)
    else:
        from cxr_tf.study.run_study import run_study

        run_study(settings)


if __name__ == "__main__":
    cli.run(RunStudy, main)
