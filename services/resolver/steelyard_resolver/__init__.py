"""What a run means, and when its work is released."""
