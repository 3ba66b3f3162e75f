"""Rows of the chain's tables."""

REAL, REAL_KEYS, QUANTISED = "real", "real (key poses)", "real (key poses), through vqvae"
MEAN_POSE, RETRIEVAL = "mean pose in the real boxes", "caption retrieval"
PCHIP, INTERPOLATED, CODED = "real keys, PCHIP", "real keys, interpolated", "quantised real keys, interpolated"
PLAN, PLAN_PCHIP, OURS = "ours: generated keys", "generated keys, PCHIP", "ours: generated and interpolated"
