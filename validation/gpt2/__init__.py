"""See gpt2.compression."""
