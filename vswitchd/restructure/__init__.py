"""The verbs, all pure: request to tree (vbm), tree to affected objects (mvsm), to plan (vcm)."""
