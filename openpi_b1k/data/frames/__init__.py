"""Frames of a data set: decoding, windows of decoded frames, depth and segmentation codes."""
