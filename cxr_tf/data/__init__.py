"""From files to batches: folder conventions, catalogue, splits, decoding, augmentation, audit."""
