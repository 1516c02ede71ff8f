"""The Doctor of one run: probe, metrics, store and sinks put together."""

from __future__ import annotations

from lossdoctor.doctor.doctor import Doctor

__all__ = ["Doctor"]
