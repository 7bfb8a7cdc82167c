"""Benches: they measure and decide nothing. `docs/performance.md` says what was seen."""
