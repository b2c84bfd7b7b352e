"""A batch script for SLURM that runs a pre-training on any number of machines, and asks for another turn when its time is over."""

import shlex
from collections.abc import Sequence

# The signal comes to this shell only ("B:"): sent to the job's steps it would end torchrun itself. torchrun hands SIGTERM
# to its processes, which save and exit 75, and then exits 1 whatever they did: so the shell remembers why.
_SCRIPT = """\
#!/bin/bash
# Adapt what follows to your cluster, then: sbatch THIS_FILE. The same file resumes a run that stopped.
#SBATCH --job-name=swav
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=swav-%j.log

processes=${{SLURM_GPUS_ON_NODE:-1}} # on each machine
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110 # seconds for the last step and the checkpoint
export OMP_NUM_THREADS=1

step=
stopped=0
trap 'stopped=1; kill -TERM $step' USR1 TERM # the time is nearly over, or the machines are wanted by others
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" \\
    --rdzv-backend c10d --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 20000))" --rdzv-id "$SLURM_JOB_ID" \\
    -m {command} &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends `wait`, not the step
    wait "$step"
    code=$?
done

# 75: stopped, and a checkpoint was saved.
if [ "$code" -eq 75 ] || {{ [ "$code" -ne 0 ] && [ "$stopped" -eq 1 ]; }}; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def batch_script(words: Sequence[str]) -> str:
    """The script for a command.

    Args:
        words: after `swav`, as `["pretrain", "auto", "data=photos", "--out", "run"]`.
    """
    return _SCRIPT.format(command=shlex.join(["swav", *words]))
