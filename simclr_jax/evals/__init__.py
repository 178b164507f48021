"""Judging frozen features: weighted kNN, linear probes at few and all labels, collapse numbers, tables and pictures.

`features` turns an `embed` function and batches into arrays; everything after it is a function of those arrays.
"""
