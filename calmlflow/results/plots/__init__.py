"""Plots of a training's results."""
