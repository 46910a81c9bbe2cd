"""Graphs of fixed shape for NPUs: quantised weights, encodings, parts, and the folder of them."""
