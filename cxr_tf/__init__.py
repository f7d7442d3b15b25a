"""Chest X-ray classification, anomaly detection and explanation in Keras 3 and TensorFlow.

Nothing heavy is imported here, so that `--help` of a script stays instant.
"""

__version__ = "0.1.0"
