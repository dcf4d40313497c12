"""The bridge's estimator on real sockets of this machine, beside a truth that is known to the nanosecond."""
