#!/usr/bin/env bash
#SBATCH --output=runs/slurm-%x-%j.log
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# The same command as on one machine, one task for each GPU. Options given to sbatch win over those above.
set -euo pipefail
srun "$@"
