"""Fixtures of the contract suites."""

from __future__ import annotations

from tests.seaweed import seaweed

__all__ = ["seaweed"]
