"""The life of a process: how it joins the others, hears signals, is watched, and ends.

Exit codes, which a launcher may act upon:

      0  done
      2  refused, before the first step: the line on stderr says what to change
     70  the data cannot be read
     71  the numbers cannot be mended: not finite so many steps in a row, or not the same on all processes
     72  a checkpoint cannot be written, or none is whole
     75  start the same command again: asked to stop, or another process is gone or stuck

1 is a bug of ours, with its traceback; 128 + n a signal n outside of training, or the second one within it.
"""
from simclr_jax.life.ends import command
from simclr_jax.life.process import Life
from simclr_jax.life.job import start
from simclr_jax.life.together import agree, barrier, gather, of_lead, refuse_together

REQUEUE = 75

__all__ = ["Life", "REQUEUE", "agree", "barrier", "command", "gather", "of_lead", "refuse_together", "start"]
