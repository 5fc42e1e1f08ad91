"""The demo: a small denoiser trained from scratch, for longer, and by Expand-Shrink-Learning.

`settings` holds the values that are written to disk, `runs` the trainings, `progress` what is
seen of them, `page` the report, `command` puts them together.
"""

from __future__ import annotations

__all__: list[str] = []
