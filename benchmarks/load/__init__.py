"""Load test of exported models: latency and throughput under concurrent requests."""
