#!/bin/bash
# sbatch examples/sweep_slurm.sh: eight jobs, a part of the sweep each; the last command makes one
# table of them. A job that is preempted or killed is queued again, and goes on where it stopped.
#SBATCH --job-name=sweep
#SBATCH --array=0-7
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=08:00:00
#SBATCH --requeue

# All parts write to one folder, which all machines see.
srun datafree sweep examples/sweep.yaml --output "$HOME/digits" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --workers "$SLURM_CPUS_PER_TASK"

# When all are done: datafree merge ~/digits
