"""What every room may use: checks of arguments, seeds, noise, JSON, and what a classifier of noisy copies is."""
