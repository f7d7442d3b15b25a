"""The folder saved_models/: versions, model cards, models.config, warm-up requests."""
