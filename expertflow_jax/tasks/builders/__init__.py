"""TFDS: the questions that are asked, with their images, read at random from array_record files."""
