"""What is known about HST calibration jobs: names, features, resources, the ladder of rungs.

Imports nothing of the project and nothing heavier than numpy, so that every other part may use it.
"""
