"""What the five services share: the map of events, the frame, the pure domain and the store."""

__version__ = "0.1.0"
