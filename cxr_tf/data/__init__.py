"""From files to batches: catalogue, phantoms, tf.data pipeline."""
