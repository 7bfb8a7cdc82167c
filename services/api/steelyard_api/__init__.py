"""HTTP: what users send is checked and written, what they ask for is read."""
