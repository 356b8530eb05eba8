"""Which experts are worth their joules: strategies, calibration, load balance and the router that runs them."""
