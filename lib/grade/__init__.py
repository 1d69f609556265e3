"""From text to number to verdict to interval; no setting, run or model is known here."""
