"""The verbs, all pure: requests to trees (vbm), trees to affected objects (mvsm), to plans (vcm)."""
