"""Fakes and servers for everyone's tests, shipped as trio.testing is."""
