"""The programs of the clinic, one file each."""

from __future__ import annotations

from lossdoctor.clinic.program import Program
from lossdoctor.clinic.programs.joint import Joint
from lossdoctor.clinic.programs.noise_to_data import NoiseToData
from lossdoctor.clinic.programs.reference import Reference
from lossdoctor.clinic.programs.ring import Ring

PROGRAMS: tuple[Program, ...] = (Joint(), NoiseToData(), Reference(), Ring())
"""Sorted by name."""

BY_NAME = {program.name: program for program in PROGRAMS}
