"""From a trained network to a registered version, and from a version to a stage."""
