"""What operators read by HTTP: metrics for Prometheus, /health and the status page (docs/metrics.md)."""
