"""Digit scenes: a visual question benchmark of real handwritten digit scans that needs no download.

The scans are the 1,797 of scikit-learn's `load_digits` (UCI optical recognition of handwritten digits, 8x8 pixels).
"""
