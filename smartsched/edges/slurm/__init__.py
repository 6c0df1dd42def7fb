"""Slurm's own programs: sbatch, squeue and scancel. Nobody else starts them."""
