"""The stages of a run in order through papermill, with status, report, sweeps and reproduction."""
