"""Decode image bytes inside the served graph."""

import tensorflow as tf

from cxr_tf.data.decoding import decode_checked
from cxr_tf.data.reading.file_headers import CORRUPT, FAULTS, FINE

# A gRPC status is cut off at a few kilobytes.
_LARGEST_FAULT_COUNT = 16


def decode_images(image_bytes: tf.Tensor, size: int) -> tf.Tensor:
    """Decode JPEG or PNG bytes, string [N], with `decode_radiograph` to uint8 [N, size, size, 1].

    This is the first step of every signature that takes files. A request with a bad image fails
    with an InvalidArgument error that names the positions of up to 16 bad images: `image_bytes[3]:
    truncated or corrupt image (1834 bytes)`. An image is bad if it is empty, is neither JPEG nor
    PNG (the decoder would also accept GIF and BMP), is larger than 50 megapixels, has a side below
    16 pixels, is blank or two-valued, or cannot be decoded. Its size is read from the header before
    anything is decoded. A JPEG that is damaged in the middle is accepted, because libjpeg decodes
    it.
    """
    count = tf.size(image_bytes)
    blank = tf.zeros([size, size, 1], tf.uint8)

    def read(row: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return row, *decode_checked(encoded, size)

    files = tf.data.Dataset.from_tensor_slices((tf.range(count), image_bytes))
    # In stock TensorFlow only tf.data continues after an op has failed: the image drops out, and
    # its missing row number identifies it. Four at a time rather than one per core: a large image
    # takes a gigabyte while it is decoded.
    decoded = files.map(read, num_parallel_calls=4, deterministic=True).ignore_errors()
    # The batch must not be empty, hence the placeholder as its first item.
    placeholder = tf.data.Dataset.from_tensors((tf.constant(-1), tf.constant(FINE), blank))
    batch = placeholder.concatenate(decoded).batch(tf.cast(count, tf.int64) + 1)
    options = tf.data.Options()
    # Autotuning and these optimisations pay off only for streams that run for minutes.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    rows, faults, grays = batch.with_options(options).get_single_element()

    all_faults = tf.tensor_scatter_nd_update(tf.fill([count], CORRUPT), rows[1:, None], faults[1:])
    bad = tf.where(all_faults != FINE)[:, 0]
    named = bad[:_LARGEST_FAULT_COUNT]
    # `client.bad_images` parses this.
    each = tf.strings.join(
        [
            *("image_bytes[", tf.strings.as_string(named), "]: "),
            tf.gather(tf.constant(FAULTS), tf.gather(all_faults, named)),
            *(" (", tf.strings.as_string(tf.strings.length(tf.gather(image_bytes, named)))),
            " bytes)",
        ]
    )
    message = tf.strings.reduce_join(each, separator="; ")
    in_all = [tf.strings.as_string(x) for x in (tf.size(bad), count)]
    message = tf.strings.join([message, "; ", in_all[0], " of ", in_all[1], " images"])
    with tf.control_dependencies([tf.debugging.Assert(tf.size(bad) == 0, [message])]):
        return tf.ensure_shape(tf.identity(grays[1:]), [None, size, size, 1])
