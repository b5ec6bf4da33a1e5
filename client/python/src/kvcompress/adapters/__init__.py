"""Adapters for what serves language models. Each module needs the library that it is named after, and nothing imports
one that was not asked for."""
