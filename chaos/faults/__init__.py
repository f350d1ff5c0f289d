"""Faults: each can be injected, healed, and shown to have fired."""
