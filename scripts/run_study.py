"""Train, evaluate and export all models on one data set, and write a report.

python scripts/run_study.py --preset quickstart                        # phantoms, minutes
python scripts/run_study.py --data chest_xray --name mine              # overnight; resumes
python scripts/run_study.py --compare mine other                       # differences by metric
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("run_study")
