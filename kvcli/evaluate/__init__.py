"""Measuring what a reading keeps: tasks with known answers, official metrics, intervals, and files that resume.

``case`` is the shape of everything; ``tasks`` lists the generators and ``files`` reads benchmark files; ``answer`` is
the one function that reads a text and asks; ``run`` goes through cases and ``report`` sums them up. Imports no torch
until something is measured.
"""
