"""Evaluation: tasks with known answers, official metrics, confidence intervals, and resumable result files.

``case`` defines the data, ``tasks`` the generators, ``datasets`` reads benchmark files, ``run`` measures and ``report``
summarizes. Imports no torch until a measurement starts.
"""
