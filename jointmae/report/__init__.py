"""What a finished run shows: report.html and the model card."""

from __future__ import annotations

from jointmae.report.card import write_model_card
from jointmae.report.page import write_report

__all__ = ["write_model_card", "write_report"]
