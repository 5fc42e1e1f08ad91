"""What one would do instead of ESL: each method a function from (model, data, budget) to a model."""

from __future__ import annotations
