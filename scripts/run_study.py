"""All five jobs on one catalogue, and a report of them.

python scripts/run_study.py --preset quickstart                        # phantoms, minutes
python scripts/run_study.py --data chest_xray --name mine              # overnight; again: goes on
python scripts/run_study.py --compare mine other                       # what changed, by metric
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("run_study")
