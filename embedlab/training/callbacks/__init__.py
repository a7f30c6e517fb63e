"""What happens around a strategy's steps, one callback a file. Lightning calls these; strategies know nothing of them."""

from embedlab.training.callbacks.evaluation import Evaluation
from embedlab.training.callbacks.finite import Finite
from embedlab.training.callbacks.preparation import Preparation
from embedlab.training.callbacks.progress import Progress
from embedlab.training.callbacks.random_state import RandomState
from embedlab.training.callbacks.resume import Resumable
from embedlab.training.callbacks.selection import Best
from embedlab.training.callbacks.timing import Stopwatch

__all__ = ["Best", "Evaluation", "Finite", "Preparation", "Progress", "RandomState", "Resumable", "Stopwatch"]
