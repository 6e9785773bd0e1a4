"""What the first minute on a new machine should tell: device, caps, link, overlap, bits and decoding, with remedies."""
