"""Fine-tuning a quantized student under its teacher, on images a generator dreams up meanwhile.

A method (`datafree.training.base.Trainer`) is hyper-parameters and losses; `train` goes the way.
"""

from datafree.training._run import train
from datafree.training._task import Dream, Task, Trained
from datafree.training._team import Team, gather_team

__all__ = ["Dream", "Task", "Team", "Trained", "gather_team", "train"]
