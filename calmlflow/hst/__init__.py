"""HST calibration jobs: names, features, resources and the ladder of rungs; numpy is the only library."""
