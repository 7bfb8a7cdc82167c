"""The catalogue of metrics, written out: what is not in it is not offered."""
