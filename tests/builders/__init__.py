"""Builders of dumps for the tests: everything they make is described by the test that asks."""
