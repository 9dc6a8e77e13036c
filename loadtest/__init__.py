"""Load test of the query service: people at work, scenarios, and a verdict on slo.yaml that is an exit code."""
