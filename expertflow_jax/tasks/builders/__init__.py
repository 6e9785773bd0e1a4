"""TFDS builders: the official files, parsed and checked once, then read at random from array_record files."""
