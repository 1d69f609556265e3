"""Questions asked, answers counted, runs compared and drawn."""
