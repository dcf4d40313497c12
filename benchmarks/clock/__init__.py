"""Device clocks on simulated links with a known truth: which estimator is how wrong, and does its bound hold."""
