"""What one would do instead of ESL: functions from (model, data, budget) to a trained model."""

from __future__ import annotations
