"""Values by name: what JSON, TOML, manifests and options hold."""

from __future__ import annotations

from typing import Any, TypeAlias

Values: TypeAlias = dict[str, Any]  # only who reads a value by its name knows its type
