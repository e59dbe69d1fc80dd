"""Score, store, plot and compare the results of trainings."""
