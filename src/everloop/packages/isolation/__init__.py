"""Loading untrusted models in a child process first, where a crash cannot hurt."""
