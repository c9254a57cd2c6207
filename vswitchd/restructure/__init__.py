"""The verbs, all pure: requests to trees (vbm), to affected objects (mvsm), to plans (vcm)."""
