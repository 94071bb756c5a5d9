"""What fuzz.py runs, and the tests replay on the inputs that it found."""
