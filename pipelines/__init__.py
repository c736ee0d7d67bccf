"""From labelled images on disk to `tf.data` batches of (image, labels, weights)."""
